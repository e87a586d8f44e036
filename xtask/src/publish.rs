//! Whether the crates can be published: each is checked as its package has it, alone.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{command, package};

/// Packages the crates that are published and checks each from its package, with the features that it asks for itself. The tree is
/// taken as it is: what is not committed yet is checked, too.
///
/// `cargo package` would do the same, but builds everything anew for it; what a check needs of other crates is there already.
pub(crate) fn check(cargo: fn() -> Command) -> Result<(), String> {
    let target = command::target_directory().join("package-check");
    let metadata = command::output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let mut package = cargo();
    package.args(["package", "--workspace", "--allow-dirty", "--no-verify", "--target-dir"]).arg(&target);
    let (published, others): (Vec<Crate>, Vec<Crate>) = crates(&metadata)?.into_iter().partition(|one| one.published);
    for one in others {
        package.args(["--exclude", &one.name]);
    }
    command::run(&mut package)?;
    let workspace = target.join("unpacked");
    unpack(&published, &target.join("package"), &workspace)?;
    for one in &published {
        let mut check = cargo();
        check.args(["check", "--package", &one.name, "--manifest-path"]).arg(workspace.join("Cargo.toml"));
        // A relative one is meant from the repository's root.
        command::run(check.env("CARGO_TARGET_DIR", command::target_directory()))?;
    }
    Ok(())
}

/// A workspace of the packages as they are uploaded, which find each other there and everything else at the versions that are locked here.
fn unpack(crates: &[Crate], packages: &Path, workspace: &Path) -> Result<(), String> {
    if workspace.exists() {
        fs::remove_dir_all(workspace).map_err(failed(workspace))?;
    }
    for one in crates {
        let (folder, release) = (workspace.join(&one.name), format!("{}-{}", one.name, one.version));
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        package::extract_folder(&packages.join(format!("{release}.crate")), &release, &folder)?;
    }
    let (manifest, lock) = (workspace.join("Cargo.toml"), workspace.join("Cargo.lock"));
    fs::write(&manifest, self::manifest(crates)).map_err(failed(&manifest))?;
    fs::copy(command::repository().join("Cargo.lock"), &lock).map(drop).map_err(failed(&lock))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// The manifest of that workspace.
fn manifest(crates: &[Crate]) -> String {
    let names = || crates.iter().map(|one| one.name.as_str());
    let members: Vec<String> = names().map(|name| format!("{name:?}")).collect();
    let patches: String = names().map(|name| format!("{name} = {{ path = {name:?} }}\n")).collect();
    format!("[workspace]\nresolver = \"3\"\nmembers = [{}]\n\n[patch.crates-io]\n{patches}", members.join(", "))
}

/// A crate of the workspace.
#[derive(Debug, PartialEq, Eq)]
struct Crate {
    name: String,
    version: String,
    /// Whether it does not say `publish = false`.
    published: bool,
}

/// The workspace's crates, from cargo's metadata.
fn crates(metadata: &str) -> Result<Vec<Crate>, String> {
    let metadata: Value = serde_json::from_str(metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array();
    let packages = packages.ok_or("cargo metadata lists no packages")?;
    Ok(packages
        .iter()
        .filter_map(|package| {
            let text = |key: &str| package[key].as_str().map(str::to_owned);
            let published = !package["publish"].as_array().is_some_and(Vec::is_empty);
            Some(Crate { name: text("name")?, version: text("version")?, published })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_publish_false_is_left_out_of_packaging() {
        let metadata = r#"{"packages": [{"name": "a", "version": "1.0.0", "publish": null},
            {"name": "b", "version": "0.1.0", "publish": []}, {"name": "c", "version": "2.0.0", "publish": ["x"]}]}"#;
        let read: Vec<(String, bool)> = crates(metadata)
            .unwrap()
            .into_iter()
            .map(|crate_| (crate_.name + " " + &crate_.version, crate_.published))
            .collect();
        assert_eq!(read, [("a 1.0.0".to_owned(), true), ("b 0.1.0".to_owned(), false), ("c 2.0.0".to_owned(), true)]);
        assert!(crates("{}").is_err());
    }

    #[test]
    fn packages_find_each_other_in_their_workspace() {
        let named = |name: &str| Crate { name: name.into(), version: "1.0.0".into(), published: true };
        let expected = "[workspace]\nresolver = \"3\"\nmembers = [\"a\", \"b\"]\n\n\
            [patch.crates-io]\na = { path = \"a\" }\nb = { path = \"b\" }\n";
        assert_eq!(manifest(&[named("a"), named("b")]), expected);
    }
}
