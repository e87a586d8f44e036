//! The pipeline cache on disk: whatever lies there, models run, and a whole file lies there afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_polaris::GpuOptions;

use crate::decoder::Decoder;
use crate::model::{Model, open};

/// A folder of its own that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("polaris-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// The only file in it.
    fn file(&self) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(files[0].extension().unwrap(), "pipelines");
        files[0].clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in a folder for temporary files does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(folder: &Path) {
    let backend = open(&GpuOptions::default().with_pipeline_cache(Some(folder.to_owned())));
    Model::load(&backend, &Decoder::default().graph()).unwrap().token(0).unwrap();
}

/// Magic, checksum, then the driver's blob, whose header is 32 bytes.
const BLOB: usize = 16;

/// FNV-1a, as the file has it.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn files_that_are_cut_damaged_or_foreign_are_made_anew() {
    let folder = Folder::new("damaged");
    run(&folder.0);
    let file = folder.file();
    let whole = fs::read(&file).unwrap();
    // The software driver's blob is a header alone.
    assert!(whole.len() >= BLOB + 32, "{} bytes", whole.len());
    assert_eq!(whole[8..BLOB], checksum(&whole[BLOB..]).to_le_bytes());
    let mut flipped = whole.clone();
    flipped[whole.len() - 1] ^= 0x10;
    // Whole by its checksum, and of another driver by its header.
    let mut foreign = whole.clone();
    foreign[BLOB + 16] ^= 1;
    let sum = checksum(&foreign[BLOB..]);
    foreign[8..BLOB].copy_from_slice(&sum.to_le_bytes());
    let half = whole[..whole.len() / 2].to_vec();
    for (what, bytes) in [("empty", Vec::new()), ("cut", half), ("flipped", flipped), ("foreign", foreign)] {
        fs::write(&file, &bytes).unwrap();
        run(&folder.0);
        let now = fs::read(folder.file()).unwrap();
        assert_ne!(now, bytes, "{what}");
        assert_eq!(now[..8], whole[..8], "{what}");
        assert_eq!(now[8..BLOB], checksum(&now[BLOB..]).to_le_bytes(), "{what}");
        assert_eq!(now[BLOB..BLOB + 32], whole[BLOB..BLOB + 32], "{what}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let folder = Folder::new("unwritable");
    // A file where a folder should be: nobody can write into that, also not who may write everywhere.
    let taken = folder.0.join("taken");
    fs::write(&taken, b"mine").unwrap();
    run(&taken);
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
}

const FOLDER_OF_CHILD: &str = "POLARIS_TEST_PIPELINE_FOLDER";

/// What the next test runs in processes of their own.
#[test]
#[ignore = "a part of two_processes_that_write_at_once_do_no_harm"]
fn child() {
    let folder = std::env::var_os(FOLDER_OF_CHILD).expect("the folder is given");
    for _ in 0..3 {
        run(Path::new(&folder));
    }
}

#[test]
fn two_processes_that_write_at_once_do_no_harm() {
    let folder = Folder::new("two");
    let start = || {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "pipeline_cache::child", "--ignored"]).env(FOLDER_OF_CHILD, &folder.0);
        child.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let children = [start(), start()];
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let bytes = fs::read(folder.file()).unwrap();
    assert_eq!(bytes[8..BLOB], checksum(&bytes[BLOB..]).to_le_bytes());
    run(&folder.0);
}
