//! The committed SPIR-V is what its manifest says, and was made from the sources as they are. Needs no compiler: that the
//! compiler still makes these bytes is checked by `cargo xtask shaders --check`.

// Shared with the compiler of the shaders, which uses more of it.
#[allow(dead_code, unreachable_pub)]
mod variants;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What to do when a test here fails.
const REMEDY: &str = "run `cargo xtask shaders` and commit what it writes";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn manifest() -> Vec<Value> {
    let text = fs::read_to_string(folder("spirv").join("manifest.json")).expect(REMEDY);
    let manifest: Value = serde_json::from_str(&text).expect("the manifest is JSON");
    manifest["shaders"].as_array().expect("the manifest lists shaders").clone()
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_else(|| panic!("an entry of the manifest has no {key}"))
}

#[test]
fn every_variant_was_compiled_from_its_source_as_it_is() {
    let variants = variants::all(&folder("shaders")).expect("the sources are well-formed");
    let sources: Vec<(String, String)> =
        variants.iter().map(|variant| (variant.name.clone(), variant.text_sha256())).collect();
    let compiled: Vec<(String, String)> =
        manifest().iter().map(|entry| (text(entry, "name").into(), text(entry, "text_sha256").into())).collect();
    assert!(!sources.is_empty(), "there is no shader");
    for (name, hash) in &sources {
        assert!(compiled.contains(&(name.clone(), hash.clone())), "{name} changed since it was compiled: {REMEDY}");
    }
    for (name, _) in &compiled {
        assert!(sources.iter().any(|(source, _)| source == name), "{name} has no source: {REMEDY}");
    }
}

#[test]
fn every_file_is_the_one_that_the_manifest_names() {
    let mut expected: BTreeSet<String> = ["manifest.json", "table.rs"].map(str::to_owned).into();
    let table = fs::read_to_string(folder("spirv").join("table.rs")).expect(REMEDY);
    for entry in manifest() {
        let name = text(&entry, "name");
        let file = format!("{name}.spv");
        let bytes = fs::read(folder("spirv").join(&file)).unwrap_or_else(|error| panic!("{file}: {error}: {REMEDY}"));
        assert_eq!(variants::sha256(&bytes), text(&entry, "spirv_sha256"), "{file}: {REMEDY}");
        assert_eq!(Some(bytes.len() as u64), entry["bytes"].as_u64(), "{file}: {REMEDY}");
        assert!(table.contains(&format!("(\"{name}\", include_bytes!(\"{file}\"))")), "{name}: {REMEDY}");
        expected.insert(file);
    }
    let files = fs::read_dir(folder("spirv")).expect(REMEDY).map(|entry| entry.expect("a folder is read").file_name());
    let files: BTreeSet<String> = files.map(|name| name.to_string_lossy().into_owned()).collect();
    assert_eq!(files, expected, "{REMEDY}");
}
