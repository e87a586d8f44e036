//! What is compiled: the variants of every shader source, as the comments at its top declare them, with their includes put in.
//!
//! This file is shared by the compiler of the shaders and by the test that holds the committed SPIR-V against its sources, so
//! that both mean the same text. It needs nothing but the standard library and SHA-256.
//!
//! ```glsl
//! #version 460
//! //@ each WEIGHT = F32 F16 Q4_0
//! //@ each R,C = 1,1 2,1 3,32
//! //@ except WEIGHT=F32 R=1
//! //@ gcn4 unit weight 32*R
//! #include "weights.glsl"
//! ```
//!
//! - `each NAME[,NAME..] = VALUE..`: an axis. A variant takes one value (with as many parts as the axis has names) of each
//!   axis; they become `#define`s after the `#version` line. All combinations are made.
//! - `except NAME=VALUE..`: drops the variants that match all pairs.
//! - `gcn4 ..`: for the report on the compiled code, `cargo xtask gcn4`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use sha2::{Digest, Sha256};

/// How deep includes may nest: a file that includes itself ends here.
const MAX_INCLUDE_DEPTH: usize = 16;

/// The most variants of one source: a slip of the axes shall not fill the disk.
const MAX_VARIANTS: usize = 4096;

/// One variant of a shader: what is compiled to one SPIR-V file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The source's stem and, for each axis, `.` and the parts of its value joined by `x`, in lower case:
    /// `matmul.q4_0.3x32`.
    pub name: String,
    /// The name of the source file.
    pub source: String,
    /// The macros and their values, in the order of the axes.
    pub defines: Vec<(String, String)>,
    /// The whole GLSL text: the source with its includes and definitions put in.
    pub text: String,
    /// Where each line of the text comes from.
    pub lines: Vec<Line>,
    /// What follows `//@ gcn4`, one entry for each such line.
    pub gcn4: Vec<Note>,
}

/// Where a line of a variant's text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The file's name; empty for the definitions of a variant.
    pub file: String,
    /// The line in the file, from 1.
    pub line: usize,
}

/// A note of the source and the line that it stands in, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line in the source.
    pub line: usize,
    /// The text after the note's keyword, trimmed.
    pub text: String,
}

impl Variant {
    /// The SHA-256 of the text, in hexadecimal digits.
    pub fn text_sha256(&self) -> String {
        sha256(self.text.as_bytes())
    }

    /// The value of a macro.
    pub fn define(&self, name: &str) -> Option<&str> {
        self.defines.iter().find(|(defined, _)| defined == name).map(|(_, value)| &**value)
    }
}

/// A SHA-256 in lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The variants of every `.comp` file in a folder, sorted by name. An error names the file and the line.
pub fn all(folder: &Path) -> Result<Vec<Variant>, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && name.ends_with(".comp")
        {
            names.push(name);
        }
    }
    names.sort();
    let mut variants = Vec::new();
    for name in names {
        variants.extend(of_source(folder, &name)?);
    }
    variants.sort_by(|a, b| a.name.cmp(&b.name));
    match variants.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(format!("{} and {} both make a variant {}", pair[0].source, pair[1].source, pair[0].name)),
        None => Ok(variants),
    }
}

/// The variants of one source file.
fn of_source(folder: &Path, name: &str) -> Result<Vec<Variant>, String> {
    let source = read(folder, name).map_err(|error| format!("{name}: {error}"))?;
    let notes = Notes::of(name, &source)?;
    let mut body = Vec::new();
    include(folder, name, &source, 0, &mut body)?;
    let version = body.iter().position(|(line, _)| line.trim_start().starts_with("#version"));
    let version = version.ok_or_else(|| format!("{name}: there is no #version line"))?;
    let (head, tail) = body.split_at(version + 1);
    let stem = name.trim_end_matches(".comp");

    let mut variants = Vec::new();
    for defines in notes.combinations(name)? {
        let definitions = defines.iter().map(|(macro_, value)| {
            let line = Line { file: String::new(), line: 0 };
            (format!("#define {macro_} {value}"), line)
        });
        let mut text = String::new();
        let mut lines = Vec::new();
        for (content, line) in head.iter().cloned().chain(definitions).chain(tail.iter().cloned()) {
            text.push_str(&content);
            text.push('\n');
            lines.push(line);
        }
        variants.push(Variant {
            name: notes.variant_name(stem, &defines),
            source: name.to_owned(),
            defines,
            text,
            lines,
            gcn4: notes.gcn4.clone(),
        });
    }
    Ok(variants)
}

/// A file's text with the line ends of Unix, so that a checkout elsewhere has the same hash.
fn read(folder: &Path, name: &str) -> Result<String, String> {
    fs::read_to_string(folder.join(name)).map(|text| text.replace("\r\n", "\n")).map_err(|error| match error.kind() {
        ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })
}

/// Adds a file's lines, with those of the files that it includes in place of the `#include`s. Lines with notes are
/// left out: they change nothing of what is compiled.
fn include(folder: &Path, name: &str, text: &str, depth: usize, body: &mut Vec<(String, Line)>) -> Result<(), String> {
    for (index, content) in text.lines().enumerate() {
        let here = || format!("{name}:{}", index + 1);
        if let Some(included) = included(content).map_err(|error| format!("{}: {error}", here()))? {
            if depth >= MAX_INCLUDE_DEPTH {
                return Err(format!("{}: includes nest deeper than {MAX_INCLUDE_DEPTH}", here()));
            }
            let text = read(folder, included).map_err(|error| format!("{}: \"{included}\": {error}", here()))?;
            include(folder, included, &text, depth + 1, body)?;
        } else if note(content).is_none() {
            body.push((content.to_owned(), Line { file: name.to_owned(), line: index + 1 }));
        }
    }
    Ok(())
}

/// The file that a line includes, if it is an `#include`.
fn included(line: &str) -> Result<Option<&str>, &'static str> {
    let Some(rest) = line.trim_start().strip_prefix('#') else { return Ok(None) };
    let Some(rest) = rest.trim_start().strip_prefix("include") else { return Ok(None) };
    let quoted = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let Some((name, _)) = quoted else { return Err("an #include needs a name in double quotes") };
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
    if name.split('/').all(plain) { Ok(Some(name)) } else { Err("an #include stays in the folder of the shaders") }
}

/// What a line says after `//@`.
fn note(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//@").map(str::trim)
}

/// An axis: the names of its macros, and its values with one part for each name.
#[derive(Debug, PartialEq, Eq)]
struct Axis {
    names: Vec<String>,
    values: Vec<Vec<String>>,
}

/// What a source says about its variants.
#[derive(Debug, Default)]
struct Notes {
    axes: Vec<Axis>,
    exceptions: Vec<Vec<(String, String)>>,
    gcn4: Vec<Note>,
}

impl Notes {
    fn of(name: &str, source: &str) -> Result<Self, String> {
        let mut notes = Self::default();
        for (index, text) in source.lines().enumerate().filter_map(|(index, line)| Some((index, note(line)?))) {
            notes.add(index + 1, text).map_err(|error| format!("{name}:{}: {error}", index + 1))?;
        }
        Ok(notes)
    }

    fn add(&mut self, line: usize, text: &str) -> Result<(), String> {
        let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match keyword {
            "each" => {
                let axis = axis(rest)?;
                let taken = |name: &&String| self.axes.iter().any(|axis| axis.names.contains(name));
                if let Some(name) = axis.names.iter().find(taken) {
                    return Err(format!("{name} is in an axis already"));
                }
                self.axes.push(axis);
            }
            "except" => {
                let exception = self.exception(rest)?;
                self.exceptions.push(exception);
            }
            "gcn4" => self.gcn4.push(Note { line, text: rest.trim().to_owned() }),
            _ => return Err(format!("//@ knows each, except and gcn4, not {keyword}")),
        }
        Ok(())
    }

    /// Pairs whose macros and values exist: one that can match nothing is a slip.
    fn exception(&self, text: &str) -> Result<Vec<(String, String)>, String> {
        let pairs: Vec<(String, String)> = text
            .split_whitespace()
            .map(|pair| {
                let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair} is not NAME=VALUE"))?;
                let axis = self.axes.iter().find(|axis| axis.names.iter().any(|known| known == name));
                let axis = axis.ok_or_else(|| format!("no axis above has {name}"))?;
                let part = axis.names.iter().position(|known| known == name).unwrap_or(0);
                if axis.values.iter().any(|parts| parts[part] == value) {
                    Ok((name.to_owned(), value.to_owned()))
                } else {
                    Err(format!("{name} is never {value}"))
                }
            })
            .collect::<Result<_, String>>()?;
        if pairs.is_empty() { Err("except needs NAME=VALUE".into()) } else { Ok(pairs) }
    }

    /// The definitions of every variant: the product of the axes, less the exceptions.
    fn combinations(&self, name: &str) -> Result<Vec<Vec<(String, String)>>, String> {
        let mut all: Vec<Vec<(String, String)>> = vec![Vec::new()];
        for axis in &self.axes {
            if all.len().saturating_mul(axis.values.len()) > MAX_VARIANTS {
                return Err(format!("{name}: more than {MAX_VARIANTS} variants"));
            }
            all = all
                .iter()
                .flat_map(|start| {
                    axis.values.iter().map(move |parts| {
                        let more = axis.names.iter().cloned().zip(parts.iter().cloned());
                        start.iter().cloned().chain(more).collect()
                    })
                })
                .collect();
        }
        all.retain(|defines| !self.exceptions.iter().any(|pairs| pairs.iter().all(|pair| defines.contains(pair))));
        if all.is_empty() { Err(format!("{name}: the exceptions leave no variant")) } else { Ok(all) }
    }

    fn variant_name(&self, stem: &str, defines: &[(String, String)]) -> String {
        let mut name = stem.to_owned();
        let mut values = defines.iter().map(|(_, value)| &**value);
        for axis in &self.axes {
            let parts: Vec<&str> = values.by_ref().take(axis.names.len()).collect();
            name.push('.');
            name.push_str(&parts.join("x"));
        }
        name.to_lowercase()
    }
}

/// Reads `NAME[,NAME..] = VALUE..`.
fn axis(text: &str) -> Result<Axis, String> {
    let (names, values) = text.split_once('=').ok_or("each needs NAME = VALUE..")?;
    let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let parts = |text: &str| -> Result<Vec<String>, String> {
        let parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        match parts.iter().find(|part| !word(part)) {
            Some(part) => Err(format!("{part:?} is no word of letters, digits and _")),
            None => Ok(parts),
        }
    };
    let names = parts(names.trim())?;
    let values: Vec<Vec<String>> = values.split_whitespace().map(parts).collect::<Result<_, _>>()?;
    if let Some(value) = values.iter().find(|value| value.len() != names.len()) {
        return Err(format!("{} has {} parts, not {}", value.join(","), value.len(), names.len()));
    }
    if values.is_empty() { Err("each needs a value".into()) } else { Ok(Axis { names, values }) }
}
