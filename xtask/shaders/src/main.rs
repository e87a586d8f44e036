//! Compiles the shaders: `cargo xtask shaders` runs this.

mod spirv;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use spirv::{COMPILER, Validation};
use xtask_shaders::manifest::{Entry, MANIFEST, Manifest, TABLE};
use xtask_shaders::variants::{self, Variant, sha256};

const USAGE: &str = "xtask-shaders [--check] [--shaders FOLDER] [--spirv FOLDER]";

/// What the validator is in, for who lacks it.
const NO_VALIDATOR: &str =
    "spirv-val is missing: it is in the package spirv-tools (Debian: sudo apt-get install -y spirv-tools)";

struct Options {
    check: bool,
    shaders: PathBuf,
    spirv: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut options = Options { check: false, shaders: xtask_shaders::sources(), spirv: xtask_shaders::spirv() };
    let mut arguments = env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut folder = || arguments.next().map(PathBuf::from).ok_or_else(|| format!("usage: {USAGE}"));
        match argument.to_str() {
            Some("--check") => options.check = true,
            Some("--shaders") => options.shaders = folder()?,
            Some("--spirv") => options.spirv = folder()?,
            _ => return Err(format!("usage: {USAGE}")),
        }
    }
    Ok(options)
}

/// Does something with every item on all cores and returns the results in order.
fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).insert(index, result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// Every variant's SPIR-V. Those that `keep` knows are not compiled again. All errors are reported at once.
fn compile(variants: &[Variant], keep: impl Fn(&Variant) -> Option<Vec<u8>> + Sync) -> Result<Vec<Compiled>, String> {
    let results = on_all_cores(variants, |variant| match keep(variant) {
        Some(bytes) => Ok(Compiled { bytes, new: false }),
        None => spirv::compile(variant).map(|bytes| Compiled { bytes, new: true }),
    });
    let errors: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    if let [first, more @ ..] = &errors[..] {
        let more = if more.is_empty() { String::new() } else { format!("\nand {} more variants", more.len()) };
        return Err(format!("{first}{more}"));
    }
    results.into_iter().collect()
}

struct Compiled {
    bytes: Vec<u8>,
    /// Whether it was compiled now.
    new: bool,
}

/// Runs the validator on those that were compiled now.
fn validate(variants: &[Variant], compiled: &[Compiled], needed: bool) -> Result<(), String> {
    let folder = env::temp_dir().join(format!("polaris-shaders-{}", process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    let new: Vec<(&Variant, &Compiled)> = variants.iter().zip(compiled).filter(|(_, compiled)| compiled.new).collect();
    let results = on_all_cores(&new, |(variant, compiled)| {
        let file = folder.join(format!("{}.spv", variant.name));
        spirv::write(&file, &compiled.bytes)?;
        match spirv::validate(&file)? {
            Validation::Valid => Ok(true),
            Validation::NoValidator => Ok(false),
            Validation::Invalid(why) => Err(format!("{}: spirv-val refuses it: {why}", variant.name)),
        }
    });
    let removed = fs::remove_dir_all(&folder);
    let ran = results.into_iter().collect::<Result<Vec<bool>, String>>()?;
    removed.map_err(|error| format!("cannot remove {}: {error}", folder.display()))?;
    match (ran.contains(&false), needed) {
        (false, _) => Ok(()),
        (true, true) => Err(NO_VALIDATOR.into()),
        (true, false) => {
            eprintln!("warning: {NO_VALIDATOR}; the shaders were not validated");
            Ok(())
        }
    }
}

/// What the folder of the SPIR-V shall hold: the names of its files and their bytes.
fn files(variants: &[Variant], compiled: &[Compiled]) -> BTreeMap<String, Vec<u8>> {
    let pairs = || variants.iter().zip(compiled);
    let shaders = pairs().map(|(variant, compiled)| Entry::new(variant, &compiled.bytes)).collect();
    let manifest = Manifest { compiler: COMPILER.into(), shaders };
    let mut files: BTreeMap<String, Vec<u8>> =
        pairs().map(|(variant, compiled)| (format!("{}.spv", variant.name), compiled.bytes.clone())).collect();
    files.insert(MANIFEST.into(), manifest.text().into_bytes());
    files.insert(TABLE.into(), manifest.table().into_bytes());
    files
}

/// The names of the files in a folder; none if it does not exist.
fn present(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Compiles what changed, writes it and removes what no variant makes any more.
fn update(options: &Options, variants: &[Variant]) -> Result<(), String> {
    let folder = &options.spirv;
    let old = fs::read_to_string(folder.join(MANIFEST)).ok().and_then(|text| Manifest::read(&text));
    let old = old.filter(|manifest| manifest.compiler == COMPILER).unwrap_or_default();
    let compiled = compile(variants, |variant| {
        let entry = old.shaders.iter().find(|entry| entry.name == variant.name)?;
        let bytes = fs::read(folder.join(format!("{}.spv", variant.name))).ok()?;
        let same = entry.text_sha256 == variant.text_sha256() && entry.spirv_sha256 == sha256(&bytes);
        same.then_some(bytes)
    })?;
    validate(variants, &compiled, false)?;

    fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    let files = files(variants, &compiled);
    for (name, bytes) in &files {
        spirv::write(&folder.join(name), bytes)?;
    }
    let stale: Vec<String> = present(folder).into_iter().filter(|name| !files.contains_key(name)).collect();
    for name in &stale {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
    }
    let new = compiled.iter().filter(|compiled| compiled.new).count();
    let bytes: usize = compiled.iter().map(|compiled| compiled.bytes.len()).sum();
    println!("{} variants, {new} compiled, {} files removed; {bytes} bytes of SPIR-V", variants.len(), stale.len());
    Ok(())
}

/// Compiles everything and compares.
fn check(options: &Options, variants: &[Variant]) -> Result<(), String> {
    let compiled = compile(variants, |_| None)?;
    validate(variants, &compiled, true)?;
    let files = files(variants, &compiled);
    let mut wrong = Vec::new();
    for (name, bytes) in &files {
        match fs::read(options.spirv.join(name)) {
            Ok(old) if old == *bytes => {}
            Ok(_) => wrong.push(format!("{name} is not what its source compiles to")),
            Err(_) => wrong.push(format!("{name} is missing")),
        }
    }
    let superfluous = present(&options.spirv).into_iter().filter(|name| !files.contains_key(name));
    wrong.extend(superfluous.map(|name| format!("{name} belongs to no variant")));
    if wrong.is_empty() {
        println!("{} variants: sources and SPIR-V are in step, and spirv-val takes all", variants.len());
        return Ok(());
    }
    Err(format!("{}\nrun `cargo xtask shaders` and commit what it writes", wrong.join("\n")))
}

fn run() -> Result<(), String> {
    let options = options()?;
    let variants = variants::all(&options.shaders)?;
    if options.check { check(&options, &variants) } else { update(&options, &variants) }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
