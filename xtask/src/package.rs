//! Packages of the Python index: downloaded with pip, checked by sha256, unpacked with Python.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::command;
use crate::tools::{self, PYTHON};

/// The form in which a package is downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Archive {
    /// A wheel, which is a zip file.
    Wheel,
    /// A source distribution, which is a gzipped tar file.
    Sdist,
}

/// One release of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) archive: Archive,
}

/// Copies one member of a zip or tar file, argv: archive, member, destination.
const COPY_MEMBER: &str = "
import shutil, sys, tarfile, zipfile
archive, member, destination = sys.argv[1:]
if zipfile.is_zipfile(archive):
    source = zipfile.ZipFile(archive).open(member)
else:
    source = tarfile.open(archive).extractfile(member)
with source, open(destination, 'wb') as out:
    shutil.copyfileobj(source, out, 1 << 20)
";

/// Unpacks the files below a folder of a tar file, argv: archive, folder, destination.
/// Only regular files are written, and only below the destination.
const COPY_FOLDER: &str = "
import os, shutil, sys, tarfile
archive, folder, destination = sys.argv[1:]
prefix = folder.rstrip('/') + '/'
root = os.path.realpath(destination)
source = tarfile.open(archive)
for entry in source:
    if not entry.isfile() or not entry.name.startswith(prefix):
        continue
    path = os.path.realpath(os.path.join(root, entry.name[len(prefix):]))
    if not path.startswith(root + os.sep):
        sys.exit('a path leads out of the archive: ' + entry.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as out:
        shutil.copyfileobj(source.extractfile(entry), out)
    os.chmod(path, entry.mode & 0o777 | 0o600)
";

impl Package {
    /// Downloads the package into an empty folder and returns the archive's path.
    pub(crate) fn download(&self, folder: &Path) -> Result<PathBuf, String> {
        tools::require(&[PYTHON, "pip"])?;
        fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let release = format!("{}=={}", self.name, self.version);
        eprintln!("fetching {release} with pip");
        let mut pip = Command::new(PYTHON);
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps"]);
        pip.args(["--disable-pip-version-check", "--no-cache-dir"]);
        match self.archive {
            Archive::Wheel => pip.args(["--only-binary", ":all:"]),
            Archive::Sdist => pip.args(["--no-binary", &self.name]),
        };
        pip.arg("--dest").arg(folder).arg(&release);
        command::output(&mut pip)?;
        let mut files = fs::read_dir(folder)
            .map_err(|error| format!("cannot read {}: {error}", folder.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()));
        match (files.next(), files.next()) {
            (Some(file), None) => Ok(file),
            _ => Err(format!("pip did not leave exactly one file for {release}")),
        }
    }
}

/// Copies one member of an archive to a file.
pub(crate) fn extract_member(archive: &Path, member: &str, to: &Path) -> Result<(), String> {
    let mut python = Command::new(PYTHON);
    python.args(["-c", COPY_MEMBER]).arg(archive).arg(member);
    command::output(python.arg(to))
        .map(drop)
        .map_err(|error| format!("{} has no {member}?\n{error}", archive.display()))
}

/// Unpacks what lies below a folder of a source distribution.
pub(crate) fn extract_folder(archive: &Path, folder: &str, to: &Path) -> Result<(), String> {
    let mut python = Command::new(PYTHON);
    python.args(["-c", COPY_FOLDER]).arg(archive).arg(folder);
    command::output(python.arg(to)).map(drop)
}

/// A file's sha256 in lower-case hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    let digest = hash.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fails if a file's sha256 is not the one expected.
pub(crate) fn check_sha256(path: &Path, expected: &str) -> Result<(), String> {
    let actual = sha256(path)?;
    if actual == expected {
        return Ok(());
    }
    Err(format!(
        "{} has the sha256 {actual}, not {expected}: it is damaged or not the file that was pinned",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, process};

    fn folder(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("polaris-{name}-{}", process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn sha256_is_that_of_the_standard() {
        let here = folder("sha");
        let file = here.join("abc");
        fs::write(&file, "abc").unwrap();
        // FIPS 180-4's example.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(check_sha256(&file, expected), Ok(()));
        fs::write(&file, "abd").unwrap();
        let error = check_sha256(&file, expected).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(check_sha256(&here.join("none"), expected).is_err());
        fs::remove_dir_all(here).unwrap();
    }

    #[test]
    fn members_and_folders_come_out_of_archives() {
        let here = folder("archive");
        let make = "
import io, sys, tarfile, zipfile
with zipfile.ZipFile(sys.argv[1] + '/a.whl', 'w') as z:
    z.writestr('p/f', 'zip')
with tarfile.open(sys.argv[1] + '/a.tar.gz', 'w:gz') as t:
    for name in ('p/v/f', 'p/v/g/h', 'p/w', 'p/v/../../../out'):
        entry = tarfile.TarInfo(name); entry.size = 3
        if sys.argv[2] == 'bad' or '..' not in name:
            t.addfile(entry, io.BytesIO(b'tar'))
";
        let python = |kind: &str| {
            let mut python = Command::new(PYTHON);
            command::output(python.args(["-c", make]).arg(&here).arg(kind)).unwrap()
        };
        python("good");
        let out = here.join("out");
        extract_member(&here.join("a.whl"), "p/f", &out).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "zip");
        extract_member(&here.join("a.tar.gz"), "p/w", &out).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "tar");
        assert!(extract_member(&here.join("a.whl"), "p/none", &out).is_err());

        let tree = here.join("tree");
        fs::create_dir(&tree).unwrap();
        extract_folder(&here.join("a.tar.gz"), "p/v", &tree).unwrap();
        assert_eq!(fs::read_to_string(tree.join("g/h")).unwrap(), "tar");
        assert!(tree.join("f").exists() && !tree.join("w").exists());
        python("bad");
        let error = extract_folder(&here.join("a.tar.gz"), "p/v", &tree).unwrap_err();
        assert!(error.contains("leads out of the archive"), "{error}");
        fs::remove_dir_all(here).unwrap();
    }
}
