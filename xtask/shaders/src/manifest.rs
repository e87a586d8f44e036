//! `manifest.json`, which says from what each SPIR-V file was made, and `table.rs`, which puts the files into the crate.

use serde_json::{Value, json};

use crate::variants::Variant;

/// The name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// The name of the generated Rust file.
pub const TABLE: &str = "table.rs";

/// What the manifest says of one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The variant's name; its file is `NAME.spv`.
    pub name: String,
    /// The name of the source file.
    pub source: String,
    /// The macros and their values.
    pub defines: Vec<(String, String)>,
    /// The SHA-256 of the text that was compiled.
    pub text_sha256: String,
    /// The SHA-256 of the SPIR-V file.
    pub spirv_sha256: String,
    /// The length of the SPIR-V file.
    pub bytes: usize,
}

impl Entry {
    /// The entry of a variant that compiles to these bytes.
    pub fn new(variant: &Variant, spirv: &[u8]) -> Self {
        Self {
            name: variant.name.clone(),
            source: variant.source.clone(),
            defines: variant.defines.clone(),
            text_sha256: variant.text_sha256(),
            spirv_sha256: crate::variants::sha256(spirv),
            bytes: spirv.len(),
        }
    }
}

/// The manifest: one compiler and all variants, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The compiler, its version and what it was asked for.
    pub compiler: String,
    /// The variants.
    pub shaders: Vec<Entry>,
}

impl Manifest {
    /// Reads a manifest; `None` if it is not one.
    pub fn read(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let shaders = value["shaders"].as_array()?.iter().map(|entry| {
            let text = |key: &str| Some(entry[key].as_str()?.to_owned());
            let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
            Some(Entry {
                name: text("name")?,
                source: text("source")?,
                defines: entry["defines"].as_array()?.iter().map(pair).collect::<Option<_>>()?,
                text_sha256: text("text_sha256")?,
                spirv_sha256: text("spirv_sha256")?,
                bytes: entry["bytes"].as_u64()?.try_into().ok()?,
            })
        });
        Some(Self { compiler: value["compiler"].as_str()?.to_owned(), shaders: shaders.collect::<Option<_>>()? })
    }

    /// The manifest's text: one line for each variant, so that a change shows what it changes.
    pub fn text(&self) -> String {
        let entries: Vec<String> = self
            .shaders
            .iter()
            .map(|entry| {
                let defines: Vec<Value> = entry.defines.iter().map(|(name, value)| json!([name, value])).collect();
                format!(
                    "    {{\"name\": {}, \"source\": {}, \"defines\": {}, \"text_sha256\": {}, \"spirv_sha256\": {}, \
                     \"bytes\": {}}}",
                    json!(entry.name),
                    json!(entry.source),
                    Value::Array(defines),
                    json!(entry.text_sha256),
                    json!(entry.spirv_sha256),
                    entry.bytes
                )
            })
            .collect();
        let compiler = json!(self.compiler);
        format!("{{\n  \"compiler\": {compiler},\n  \"shaders\": [\n{}\n  ]\n}}\n", entries.join(",\n"))
    }

    /// The Rust source with every file's bytes under its variant's name.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "// Made by `cargo xtask shaders`. Do not edit.\n\n\
             /// The SPIR-V of every variant, sorted by name.\n\
             #[rustfmt::skip]\n\
             pub(crate) const SHADERS: &[(&str, &[u8])] = &[\n",
        );
        for Entry { name, .. } in &self.shaders {
            text.push_str(&format!("    ({name:?}, include_bytes!(\"{name}.spv\")),\n"));
        }
        text.push_str("];\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_was_written_is_read_back() {
        let entry = Entry {
            name: "add.f16".into(),
            source: "add.comp".into(),
            defines: vec![("TYPE".into(), "F16".into())],
            text_sha256: "00".into(),
            spirv_sha256: "01".into(),
            bytes: 20,
        };
        let manifest = Manifest { compiler: "a \"b\"".into(), shaders: vec![entry.clone(), entry] };
        assert_eq!(Manifest::read(&manifest.text()), Some(manifest));
        assert_eq!(Manifest::read("{\"compiler\": \"x\"}"), None);
    }

    #[test]
    fn the_table_has_the_bytes_of_every_file() {
        let entry = Entry {
            name: "add.1x2".into(),
            source: String::new(),
            defines: Vec::new(),
            text_sha256: String::new(),
            spirv_sha256: String::new(),
            bytes: 0,
        };
        let table = Manifest { compiler: String::new(), shaders: vec![entry] }.table();
        assert!(table.contains("(\"add.1x2\", include_bytes!(\"add.1x2.spv\")),"), "{table}");
    }
}
