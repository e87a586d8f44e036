//! Models in several files.

use std::path::{Path, PathBuf};

use loader_gguf::{FileAccess, GgmlType, Gguf, GgufError, GgufWriter, SplitFault, shard_path};

/// A fresh folder of this name.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("split-{name}"));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

/// What to write into one shard; `None` leaves the key out.
struct Shard<'a> {
    number: Option<u16>,
    count: Option<u16>,
    total: Option<i32>,
    tensors: &'a [&'a str],
}

fn write(path: &Path, shard: &Shard<'_>) {
    let data = [0x42; 16];
    let mut writer = GgufWriter::new();
    let written = (|| {
        if let Some(number) = shard.number {
            writer.set("split.no", number)?;
        }
        if let Some(count) = shard.count {
            writer.set("split.count", count)?;
        }
        if let Some(total) = shard.total {
            writer.set("split.tensors.count", total)?;
        }
        if shard.number == Some(0) {
            writer.set("general.architecture", "llama")?;
        }
        for name in shard.tensors {
            writer.bytes(name, GgmlType::F32, &[4], &data)?;
        }
        writer.write(path)
    })();
    written.expect("written");
}

const SHARDS: [Shard<'static>; 3] = [
    Shard { number: Some(0), count: Some(3), total: Some(4), tensors: &[] },
    Shard { number: Some(1), count: Some(3), total: Some(4), tensors: &["a", "b"] },
    Shard { number: Some(2), count: Some(3), total: Some(4), tensors: &["c", "d"] },
];

/// Writes the three shards; returns the path of the first.
fn three(folder: &Path) -> PathBuf {
    for (number, shard) in (1..).zip(&SHARDS) {
        write(&shard_path(&folder.join("m"), number, 3), shard);
    }
    folder.join("m-00001-of-00003.gguf")
}

fn fault(path: &Path) -> (String, SplitFault) {
    match Gguf::open(path, FileAccess::Read) {
        Err(GgufError::Split { path, fault }) => {
            (path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(), fault)
        }
        other => panic!("expected a split fault, got {other:?}"),
    }
}

#[test]
fn any_shard_opens_the_whole_model() {
    let folder = folder("whole");
    three(&folder);
    for number in 1..=3 {
        for access in [FileAccess::Map, FileAccess::Read] {
            let model = Gguf::open(shard_path(&folder.join("m"), number, 3), access).expect("a split model");
            assert_eq!(model.shards().len(), 3);
            assert_eq!(model.str("general.architecture").ok(), Some("llama"), "metadata is that of the first file");
            let names: Vec<_> = model.tensors().iter().map(|info| (info.name(), info.shard())).collect();
            assert_eq!(names, [("a", 1), ("b", 1), ("c", 2), ("d", 2)]);
            assert_eq!(model.tensor("d").expect("a tensor").bytes(), [0x42; 16]);
        }
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = folder("missing");
    let first = three(&folder);
    std::fs::remove_file(folder.join("m-00002-of-00003.gguf")).expect("removed");
    assert_eq!(fault(&first), ("m-00002-of-00003.gguf".to_owned(), SplitFault::Missing { number: 2, count: 3 }));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_waiting_for_a_writer() {
    let folder = folder("pipe");
    let pipe = folder.join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(Gguf::open(&pipe, FileAccess::Map).map(|_| ()).map_err(|e| e.to_string())));
    let error = receiver.recv_timeout(std::time::Duration::from_secs(20)).expect("an answer").expect_err("no model");
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn a_renamed_shard_is_refused() {
    let folder = folder("renamed");
    let first = three(&folder);
    let other = folder.join("model.gguf");
    std::fs::copy(&first, &other).expect("copied");
    assert_eq!(fault(&other), ("model.gguf".to_owned(), SplitFault::Name { count: 3 }));
    let other = folder.join("m-00001-of-00004.gguf");
    std::fs::copy(&first, &other).expect("copied");
    assert_eq!(fault(&other).1, SplitFault::Count { expected: 4, found: 3 });
    let second = folder.join("m-00002-of-00003.gguf");
    std::fs::copy(&first, &second).expect("copied");
    assert_eq!(fault(&first), ("m-00002-of-00003.gguf".to_owned(), SplitFault::Number { expected: 1, found: 0 }));
    let zeroth = folder.join("m-00000-of-00003.gguf");
    std::fs::copy(&first, &zeroth).expect("copied");
    assert!(Gguf::open(zeroth, FileAccess::Map).is_err());
}

#[test]
fn shards_that_contradict_each_other_are_refused() {
    let folder = folder("contradict");
    let first = three(&folder);
    let third = folder.join("m-00003-of-00003.gguf");
    let with = |shard: Shard<'_>| {
        write(&third, &shard);
        fault(&first)
    };
    let name = || "m-00003-of-00003.gguf".to_owned();
    let shard = |tensors| Shard { number: Some(2), count: Some(3), total: Some(4), tensors };
    assert_eq!(
        with(Shard { count: Some(2), ..shard(&["c", "d"]) }),
        (name(), SplitFault::Count { expected: 3, found: 2 })
    );
    assert_eq!(with(Shard { count: None, ..shard(&["c", "d"]) }), (name(), SplitFault::NoKey { key: "split.count" }));
    assert_eq!(with(Shard { number: None, ..shard(&["c", "d"]) }), (name(), SplitFault::NoKey { key: "split.no" }));
    assert_eq!(with(shard(&["c"])).1, SplitFault::TensorCount { expected: 4, found: 3 });
    assert_eq!(
        with(Shard { total: Some(5), ..shard(&["c", "d"]) }),
        (name(), SplitFault::TensorCount { expected: 5, found: 4 })
    );
    assert_eq!(
        with(shard(&["c", "a"])),
        (name(), SplitFault::DuplicateTensor { name: "a".to_owned(), other: folder.join("m-00002-of-00003.gguf") })
    );
}

#[test]
fn a_malformed_shard_is_named() {
    let folder = folder("malformed");
    let first = three(&folder);
    std::fs::write(folder.join("m-00003-of-00003.gguf"), b"GGUF").expect("written");
    let error = Gguf::open(first, FileAccess::Map).expect_err("a cut shard");
    assert!(error.malformed().is_some_and(|m| m.path.ends_with("m-00003-of-00003.gguf")), "{error}");
}

#[test]
fn one_file_of_one_is_a_whole_model_whatever_its_name() {
    let folder = folder("single");
    for (name, count) in [("m-00001-of-00007.gguf", None), ("m.gguf", Some(1)), ("n.gguf", Some(0))] {
        let path = folder.join(name);
        write(&path, &Shard { number: None, count, total: None, tensors: &["a"] });
        assert_eq!(Gguf::open(path, FileAccess::Map).expect("a model").tensors().len(), 1);
    }
}

#[test]
fn a_shard_in_memory_is_refused() {
    let folder = folder("memory");
    let bytes = std::fs::read(three(&folder)).expect("read");
    let error = Gguf::from_slice("m-00001-of-00003.gguf", &bytes).expect_err("one of three");
    assert!(matches!(error, GgufError::Split { fault: SplitFault::InMemory { count: 3 }, .. }), "{error}");
}
