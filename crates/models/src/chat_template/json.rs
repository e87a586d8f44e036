//! JSON as Python lays it out.

use std::io::{self, Write};

use minijinja::Value;
use minijinja::value::Kwargs;
use serde::Serialize;

use super::bounds::writable;
use super::invalid;

/// `json.dumps` of Python as `apply_chat_template` calls it, with `indent` and `separators`. The
/// other arguments of Python have no effect on what templates put out.
pub(super) fn to_json(value: &Value, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let separators: Option<(String, String)> =
        arguments.get::<Option<Value>>("separators")?.map_or(Ok(None), |pair| {
            let item = |at| pair.get_item_by_index(at).map(|item| item.to_string());
            Ok::<_, minijinja::Error>(Some((item(0)?, item(1)?)))
        })?;
    for ignored in ["ensure_ascii", "sort_keys"] {
        let _: Option<Value> = arguments.get(ignored)?;
    }
    arguments.assert_all_used()?;
    writable(value)?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or((item.to_owned(), ": ".to_owned()));
    let mut json = Vec::new();
    // The widest indentation that a template could mean; each line repeats it.
    let indent = indent.map(|width| " ".repeat(width.min(16)));
    let format = PythonJson { item, key, indent, depth: 0, empty: true };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, format)).map_err(invalid)?;
    String::from_utf8(json).map_err(invalid)
}

/// The layout of Python's `json.dumps`.
struct PythonJson {
    item: String,
    key: String,
    indent: Option<String>,
    depth: usize,
    /// Whether the innermost list has no entries yet.
    empty: bool,
}

impl PythonJson {
    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn entry<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.new_line(writer)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !std::mem::take(&mut self.empty) {
            self.new_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn new_line<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.entry(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.entry(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}
