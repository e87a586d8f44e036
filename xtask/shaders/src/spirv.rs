//! The compiler: GLSL to SPIR-V 1.5 for Vulkan 1.2, not optimised, without names.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use glslang::error::GlslangError;
use glslang::{
    Compiler, CompilerOptions, ShaderInput, ShaderMessage, ShaderSource, ShaderStage, SourceLanguage, SpirvVersion,
    Target, VulkanVersion,
};
use xtask_shaders::variants::Variant;

/// What the manifest calls the compiler. Other versions write other bytes. The drivers optimise: SPIR-V that was optimised
/// before gives the same machine code from larger files.
pub(crate) const COMPILER: &str = "glslang crate 0.9.1, SPIR-V 1.5 for Vulkan 1.2, not optimised, names stripped";

/// Compiles a variant to the bytes of a SPIR-V file.
pub(crate) fn compile(variant: &Variant) -> Result<Vec<u8>, String> {
    let compiler = Compiler::acquire().ok_or("glslang does not start")?;
    let source = ShaderSource::from(variant.text.clone());
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_2, spirv_version: SpirvVersion::SPIRV1_5 },
        version_profile: None,
        messages: ShaderMessage::DEFAULT | ShaderMessage::VULKAN_RULES | ShaderMessage::SPV_RULES,
    };
    let failed = |error: GlslangError| explained(variant, &error);
    let none: Option<&[(&str, Option<&str>)]> = None;
    let input = ShaderInput::new(&source, ShaderStage::Compute, &options, none, None).map_err(failed)?;
    let shader = compiler.create_shader(input).map_err(failed)?;
    let words = shader.compile().map_err(failed)?;
    let words = without_names(&words).ok_or_else(|| format!("{}: glslang made no SPIR-V", variant.name))?;
    Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// The compiler's messages with the file and line that each is about, and the variant.
fn explained(variant: &Variant, error: &GlslangError) -> String {
    let log = match error {
        GlslangError::PreprocessError(log) | GlslangError::ParseError(log) | GlslangError::LinkError(log) => &log.log,
        other => return format!("{}: {other}", variant.name),
    };
    let lines = log.lines().filter(|line| !line.trim().is_empty());
    let lines = lines.filter(|line| !line.contains("compilation errors.  No code generated."));
    let lines: Vec<String> = lines.map(|line| located(variant, line)).collect();
    format!("{} ({}) does not compile:\n{}", variant.name, variant.source, lines.join("\n"))
}

/// `ERROR: 0:12: text` as `file:line: text`.
fn located(variant: &Variant, message: &str) -> String {
    let parsed = message.split_once("0:").and_then(|(kind, rest)| {
        let (line, text) = rest.split_once(':')?;
        let line: usize = line.trim().parse().ok()?;
        Some((kind, variant.lines.get(line.checked_sub(1)?)?, text))
    });
    match parsed {
        Some((kind, line, text)) if line.file.is_empty() => format!("  {kind}in the definitions:{text}"),
        Some((kind, line, text)) => format!("  {}:{}: {}{}", line.file, line.line, kind, text.trim_start()),
        None => format!("  {message}"),
    }
}

/// A module without its source, names and lines, which no driver needs.
fn without_names(words: &[u32]) -> Option<Vec<u32>> {
    /// OpSourceContinued, OpSource, OpSourceExtension, OpName, OpMemberName, OpString, OpLine, OpNoLine, OpModuleProcessed.
    const NAMES: [u32; 9] = [2, 3, 4, 5, 6, 7, 8, 317, 330];
    let mut kept = words.get(..5)?.to_vec();
    let mut rest = words.get(5..)?;
    while let Some(first) = rest.first() {
        let length = (first >> 16) as usize;
        if length == 0 {
            return None;
        }
        let instruction = rest.get(..length)?;
        if !NAMES.contains(&(first & 0xffff)) {
            kept.extend(instruction);
        }
        rest = rest.get(length..)?;
    }
    Some(kept)
}

/// The answer of `spirv-val`.
pub(crate) enum Validation {
    /// The file is valid.
    Valid,
    /// It is not, and why.
    Invalid(String),
    /// The program is not installed.
    NoValidator,
}

/// Runs `spirv-val` on a file.
pub(crate) fn validate(file: &Path) -> Result<Validation, String> {
    let mut command = Command::new("spirv-val");
    command.args(["--target-env", "vulkan1.2"]).arg(file).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(Validation::Valid),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Ok(Validation::Invalid(String::from_utf8_lossy(&said).trim().to_owned()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Validation::NoValidator),
        Err(error) => Err(format!("cannot run spirv-val: {error}")),
    }
}

/// Writes a file through another one beside it: who reads sees the old bytes or the new ones. A file that has these bytes
/// already is left alone.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let temporary = path.with_extension("tmp");
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    fs::write(&temporary, bytes).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask_shaders::variants::Line;

    fn variant(lines: &[(&str, usize, &str)]) -> Variant {
        Variant {
            name: "a.1".into(),
            source: "a.comp".into(),
            defines: Vec::new(),
            text: lines.iter().map(|(_, _, text)| format!("{text}\n")).collect(),
            lines: lines.iter().map(|&(file, line, _)| Line { file: file.into(), line }).collect(),
            gcn4: Vec::new(),
        }
    }

    #[test]
    fn a_shader_compiles_to_spirv_1_5_without_names() {
        let text = [("a.comp", 1, "#version 460"), ("a.comp", 2, "layout(local_size_x = 64) in; void main() {}")];
        let bytes = compile(&variant(&text)).unwrap();
        assert_eq!(bytes[..8], [3, 2, 0x23, 7, 0, 5, 1, 0]);
        assert!(!bytes.windows(5).any(|name| name == b"\x05\0\x04\0m"));
    }

    #[test]
    fn an_error_names_the_variant_the_file_and_the_line() {
        let text =
            [("a.comp", 1, "#version 460"), ("", 0, "#define R 1"), ("b.glsl", 7, "nonsense"), ("a.comp", 3, "")];
        let error = compile(&variant(&text)).unwrap_err();
        assert!(error.starts_with("a.1 (a.comp) does not compile:\n"), "{error}");
        assert!(error.contains("  b.glsl:7: ERROR: '"), "{error}");
    }

    #[test]
    fn the_manifest_names_the_version_that_is_pinned() {
        let manifest = include_str!("../Cargo.toml");
        let pinned = manifest.split_once("glslang = { version = \"=").and_then(|(_, rest)| rest.split_once('"'));
        let (version, _) = pinned.unwrap();
        assert!(COMPILER.starts_with(&format!("glslang crate {version},")), "{COMPILER}");
    }
}
