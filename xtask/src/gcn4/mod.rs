//! `cargo xtask gcn4`: what the shaders become on GCN4, and whether they keep their budgets.

mod assembly;
mod budget;
mod figures;
mod null_device;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};

use xtask_shaders::manifest::{MANIFEST, Manifest};
use xtask_shaders::variants;

use crate::arguments::Arguments;
use budget::Budget;
use figures::Figures;
use rows::Row;

pub(crate) const USAGE: &str = "cargo xtask gcn4 [--only TEXT] [--json] [--asm NAME] [--check] [--write-budget]
                   [--shaders FOLDER] [--spirv FOLDER]

Compiles every shader variant for an RX 480 (polaris10) with Mesa's RADV, which needs no card, and shows registers, shared
memory, waves per SIMD, code size and what the main loop is made of: the loop with the most instructions of its own.
  waves     waves per SIMD, by vector registers alone and as the driver says
  loop      instructions in the main loop: mac (v_mac, v_mad, v_fma of f32), cvt, other vector (valu), scalar (salu),
            scalar loads (smem), vector loads and stores (vmem), shared memory (lds), waits
  per unit  vector instructions per unit of work, where the source declares one
  mac share mac of all instructions in the main loop
  lds share clocks of the shared memory against clocks of the vector units, four SIMDs sharing one memory

  --only TEXT       rows whose name contains TEXT
  --json            the figures as JSON
  --asm NAME        the assembly of one row
  --check           fail where a row exceeds crates/gpu-polaris/gcn4-budget.json, has no budget, or differs from
                    gcn4-figures.json beside it, or misses a goal of its source. With and without --check, it fails
                    on spills, on scratch memory, on more than 32 KiB of shared memory, and on norms, softmax and
                    reductions of more than 8 KiB of code
  --write-budget    make the present figures the budget, and write gcn4-figures.json
  --write-figures   write gcn4-figures.json only, for figures that got better
  --shaders, --spirv  the folders of other sources and of what they compiled to

In a .comp file:
  //@ gcn4 unit weight 32*R [when NAME=VALUE|VALUE ..]  what a lane does in one trip of the main loop; the first that
                                                        applies counts
  //@ gcn4 spec 0=256 1=4 [when ..]                     a row with these specialization constants, NAME@0=256,1=4
  //@ gcn4 goal max_valu_per_unit=2.7 [when ..]         limits, by their names in the budget, that --write-budget
                                                        does not move; of each the first that applies counts";

/// The limits, beside the crate's manifest.
const BUDGET: &str = "gcn4-budget.json";

/// The figures that `polaris estimate` reads, beside the crate's manifest.
const FIGURES: &str = "gcn4-figures.json";

struct Options {
    only: Option<String>,
    json: bool,
    asm: Option<String>,
    check: bool,
    write_budget: bool,
    write_figures: bool,
    shaders: PathBuf,
    spirv: PathBuf,
}

impl Options {
    fn read(mut arguments: Arguments) -> Result<Self, String> {
        let options = Self {
            only: arguments.value(&["--only"])?,
            json: arguments.flag(&["--json"]),
            asm: arguments.value(&["--asm"])?,
            check: arguments.flag(&["--check"]),
            write_budget: arguments.flag(&["--write-budget"]),
            write_figures: arguments.flag(&["--write-figures"]),
            shaders: arguments.value(&["--shaders"])?.map_or_else(xtask_shaders::sources, PathBuf::from),
            spirv: arguments.value(&["--spirv"])?.map_or_else(xtask_shaders::spirv, PathBuf::from),
        };
        arguments.end()?;
        if options.only.is_some() && (options.write_budget || options.write_figures) {
            return Err("the files hold all rows: --only does not go with writing them".into());
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        match &self.asm {
            Some(asm) => name == asm,
            None => self.only.as_ref().is_none_or(|only| name.contains(only.as_str())),
        }
    }
}

/// The subcommand.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    if arguments.flag(&[null_device::CHILD]) {
        null_device::child();
    }
    let options = Options::read(arguments)?;
    let rows = rows(&options)?;
    let answers = null_device::compile(&rows, &options.spirv)?;
    if options.asm.is_some() {
        for compiled in &answers.pipelines {
            println!("{}", compiled.assembly);
        }
        return Ok(());
    }
    let figures = rows.iter().zip(&answers.pipelines).map(|(row, compiled)| Figures::of(row, compiled));
    let figures: Vec<Figures> = figures.collect::<Result<_, _>>()?;
    let driver = &answers.driver;
    if options.json {
        print!("{}", figures::file(driver, &figures));
    } else {
        println!("{}{} rows, {driver}", figures::table(&figures), rows.len());
    }

    let folder = xtask_shaders::gpu_polaris();
    if options.write_budget {
        write(&folder.join(BUDGET), &Budget::of(driver, &figures).text())?;
    }
    if options.write_budget || options.write_figures {
        write(&folder.join(FIGURES), &figures::file(driver, &figures))?;
    }
    let mut wrong = budget::rules(&figures);
    if options.check {
        wrong.extend(budget::goals(&figures));
        wrong.extend(check(&folder, driver, &figures, options.only.is_none())?);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{}\n{} are wrong", wrong.join("\n"), wrong.len()))
}

/// The rows that are wanted, of sources that were compiled as they are.
fn rows(options: &Options) -> Result<Vec<Row>, String> {
    let compiled = fs::read_to_string(options.spirv.join(MANIFEST)).ok().and_then(|text| Manifest::read(&text));
    let compiled = compiled.unwrap_or_default().shaders;
    let mut rows = Vec::new();
    for variant in variants::all(&options.shaders)? {
        let entry = compiled.iter().find(|entry| entry.name == variant.name);
        let fresh = entry.is_some_and(|entry| entry.text_sha256 == variant.text_sha256());
        let wanted: Vec<Row> = rows::of(&variant)?.into_iter().filter(|row| options.wants(&row.name)).collect();
        if !wanted.is_empty() && !fresh {
            return Err(format!("{} changed since it was compiled: run `cargo xtask shaders`", variant.name));
        }
        rows.extend(wanted);
    }
    if rows.is_empty() {
        return Err(match options.asm.as_ref().or(options.only.as_ref()) {
            Some(name) => format!("no row is called {name}"),
            None => "there is no shader".into(),
        });
    }
    // Names differ, and the files are sorted by them.
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

/// What is not as the committed files say.
fn check(folder: &Path, driver: &str, figures: &[Figures], complete: bool) -> Result<Vec<String>, String> {
    let path = folder.join(BUDGET);
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("{}: {error}; `cargo xtask gcn4 --write-budget` makes it", path.display()))?;
    let budget = Budget::read(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    if budget.driver != driver {
        return Err(format!(
            "the budget is of {:?}, and this is {driver:?}: another compiler's figures say nothing about the change\n\
             install that version, or look at the report and make its figures the budget with \
             `cargo xtask gcn4 --write-budget`",
            budget.driver
        ));
    }
    let mut wrong = budget.check(figures, complete);
    if wrong.is_empty() && complete {
        let known = fs::read_to_string(folder.join(FIGURES)).unwrap_or_default();
        if known != figures::file(driver, figures) {
            wrong.push(format!("{FIGURES} has other figures: run `cargo xtask gcn4 --write-figures` and commit it"));
        }
    }
    Ok(wrong)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<Options, String> {
        Options::read(Arguments::new(text.split_whitespace().map(str::to_owned)))
    }

    #[test]
    fn rows_are_chosen_by_a_part_of_their_name_and_assembly_by_all_of_it() {
        let only = options("--only q4").unwrap();
        assert!(only.wants("matvec.q4_0") && !only.wants("matvec.q8_0"));
        let asm = options("--asm matvec.q4_0").unwrap();
        assert!(asm.wants("matvec.q4_0") && !asm.wants("matvec.q4_0@0=64"));
        assert!(options("").unwrap().wants("anything"));
        assert!(options("--only q4 --write-budget").is_err());
    }

    #[test]
    fn another_drivers_budget_is_not_compared() {
        let folder = std::env::temp_dir().join(format!("polaris-gcn4-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let figures = [figures::tests::example()];
        fs::write(folder.join(BUDGET), Budget::of("Mesa 1", &figures).text()).unwrap();
        fs::write(folder.join(FIGURES), figures::file("Mesa 1", &figures)).unwrap();
        let same = check(&folder, "Mesa 1", &figures, true);
        let other = check(&folder, "Mesa 2", &figures, true);
        let mut better = figures;
        better[0].vgprs = 24;
        let better = check(&folder, "Mesa 1", &better, true);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(same, Ok(Vec::new()));
        assert!(other.unwrap_err().contains("--write-budget"));
        assert!(better.unwrap()[0].contains("--write-figures"));
    }
}
