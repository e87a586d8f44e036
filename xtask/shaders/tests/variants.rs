//! How a source's variants are read.

use std::fs;
use std::path::PathBuf;
use std::{env, process};

use xtask_shaders::variants::{self, Variant};

/// A folder of shaders that goes with the test.
struct Shaders(PathBuf);

impl Shaders {
    fn new(test: &str, files: &[(&str, &str)]) -> Self {
        let folder = env::temp_dir().join(format!("polaris-variants-{test}-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        Self(folder)
    }

    fn variants(&self) -> Result<Vec<Variant>, String> {
        variants::all(&self.0)
    }
}

impl Drop for Shaders {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The error that a source of these lines gives.
fn error(test: &str, text: &str) -> String {
    Shaders::new(test, &[("a.comp", text)]).variants().unwrap_err()
}

#[test]
fn the_variants_are_the_product_of_the_axes_less_the_exceptions() {
    let text = "#version 460\n//@ each WEIGHT = F32 Q4_0\n//@ each R,C = 1,1 3,32\n//@ except WEIGHT=F32 R=3\nvoid main() {}\n";
    let variants = Shaders::new("product", &[("matmul.comp", text)]).variants().unwrap();
    let names: Vec<&str> = variants.iter().map(|variant| &*variant.name).collect();
    assert_eq!(names, ["matmul.f32.1x1", "matmul.q4_0.1x1", "matmul.q4_0.3x32"]);
    assert_eq!(variants[2].define("WEIGHT"), Some("Q4_0"));
    assert_eq!(variants[2].define("C"), Some("32"));
}

#[test]
fn definitions_stand_after_the_version_and_includes_in_place() {
    let files = [
        ("a.comp", "// first\n#version 460\n//@ each R = 2\n#include \"b.glsl\"\nlast\n"),
        ("b.glsl", "b1\n# include \"c.glsl\"\nb3\n"),
        ("c.glsl", "c1\r\n"),
    ];
    let variants = Shaders::new("includes", &files).variants().unwrap();
    assert_eq!(variants[0].text, "// first\n#version 460\n#define R 2\nb1\nc1\nb3\nlast\n");
    let lines: Vec<(&str, usize)> = variants[0].lines.iter().map(|line| (&*line.file, line.line)).collect();
    let expected = [("a.comp", 1), ("a.comp", 2), ("", 0), ("b.glsl", 1), ("c.glsl", 1), ("b.glsl", 3), ("a.comp", 5)];
    assert_eq!(lines, expected);
}

#[test]
fn a_file_without_axes_has_one_variant_of_its_own_name() {
    let files = [("Add.comp", "#version 460\n//@ gcn4 unit row 4\n"), ("x.glsl", "no variant")];
    let variants = Shaders::new("plain", &files).variants().unwrap();
    assert_eq!(variants.len(), 1);
    assert_eq!((&*variants[0].name, &*variants[0].source), ("add", "Add.comp"));
    assert_eq!((variants[0].gcn4[0].line, &*variants[0].gcn4[0].text), (2, "unit row 4"));
}

#[test]
fn a_note_for_the_report_does_not_change_the_compiled_text() {
    let text = |note: &str| format!("#version 460\n//@ gcn4 {note}\nvoid main() {{}}\n");
    let of = |name: &str, note: &str| {
        Shaders::new(name, &[("a.comp", &text(note))]).variants().unwrap().remove(0).text_sha256()
    };
    assert_eq!(of("note1", "unit weight 32"), of("note2", "spec 0=64\n//@ gcn4 spec 0=256"));
}

#[test]
fn slips_are_named_with_their_line() {
    assert_eq!(error("version", "void main() {}\n"), "a.comp: there is no #version line");
    assert_eq!(error("keyword", "#version 460\n//@ all R = 1\n"), "a.comp:2: //@ knows each, except and gcn4, not all");
    assert_eq!(error("parts", "#version 460\n//@ each R,C = 1\n"), "a.comp:2: 1 has 1 parts, not 2");
    assert_eq!(error("twice", "#version 460\n//@ each R = 1\n//@ each R = 2\n"), "a.comp:3: R is in an axis already");
    assert_eq!(error("never", "#version 460\n//@ each R = 1\n//@ except R=2\n"), "a.comp:3: R is never 2");
    assert_eq!(error("axis", "#version 460\n//@ except R=2\n"), "a.comp:2: no axis above has R");
    let all = "#version 460\n//@ each R = 1\n//@ except R=1\n";
    assert_eq!(error("none", all), "a.comp: the exceptions leave no variant");
    assert_eq!(error("missing", "#version 460\n#include \"x.glsl\"\n"), "a.comp:2: \"x.glsl\": there is no such file");
    let outside = "a.comp:2: an #include stays in the folder of the shaders";
    assert_eq!(error("outside", "#version 460\n#include \"../x.glsl\"\n"), outside);
    assert_eq!(error("root", "#version 460\n#include \"/etc/x\"\n"), outside);
    assert_eq!(error("self", "#version 460\n#include \"a.comp\"\n"), "a.comp:2: includes nest deeper than 16");
    let many = "#version 460\n//@ each A = 0 1 2 3 4 5 6 7\n//@ each B = 0 1 2 3 4 5 6 7\n//@ each C = 0 1 2 3 4 5 6 7\n\
                //@ each D = 0 1 2 3 4 5 6 7 8\n";
    assert_eq!(error("many", many), "a.comp: more than 4096 variants");
}

#[test]
fn two_sources_cannot_make_one_variant() {
    let files = [("a.comp", "#version 460\n//@ each R = b\n"), ("a.b.comp", "#version 460\n")];
    let error = Shaders::new("one", &files).variants().unwrap_err();
    assert_eq!(error, "a.b.comp and a.comp both make a variant a.b");
}
