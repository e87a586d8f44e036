//! Developer tasks: `cargo xtask` lists them.

mod arguments;
mod bench;
mod cache;
mod ci;
mod codegen;
mod command;
mod demo;
mod doctor;
mod fetch;
mod gcn4;
mod onnx_cases;
mod package;
mod publish;
mod shaders;
mod tools;
mod vulkan;

use std::env;
use std::process::ExitCode;

use arguments::Arguments;

/// A subcommand.
struct Task {
    name: &'static str,
    about: &'static str,
    usage: &'static str,
    main: fn(Arguments) -> Result<(), String>,
}

const TASKS: &[Task] = &[
    Task {
        name: "demo",
        about: "fetch a small model, build, and stream an answer",
        usage: "cargo xtask demo [-p QUESTION] [--device auto|cpu]",
        main: demo::main,
    },
    Task { name: "ci", about: "everything that continuous integration checks", usage: ci::USAGE, main: ci::main },
    Task {
        name: "fetch",
        about: "fetch models into the cache, checked by sha256, and print their paths",
        usage: "cargo xtask fetch [--list] [NAME..]\n\n\
                Without a name: all. The cache is $POLARIS_CACHE, $XDG_CACHE_HOME/polaris or ~/.cache/polaris.",
        main: fetch::main,
    },
    Task {
        name: "bench",
        about: "measure speed and memory, beside a peer in the same run",
        usage: bench::USAGE,
        main: bench::main,
    },
    Task {
        name: "codegen",
        about: "make the committed code of file formats from their schemas",
        usage: codegen::USAGE,
        main: codegen::main,
    },
    Task {
        name: "shaders",
        about: "compile the shaders to the SPIR-V that is committed",
        usage: shaders::USAGE,
        main: shaders::main,
    },
    Task {
        name: "gcn4",
        about: "show what the shaders become on GCN4 and check it against the budget",
        usage: gcn4::USAGE,
        main: gcn4::main,
    },
    Task {
        name: "doctor",
        about: "say what this machine lacks and how to install it",
        usage: "cargo xtask doctor",
        main: doctor::main,
    },
];

fn list() {
    println!("Usage: cargo xtask TASK [ARGUMENTS]\n\nTasks:");
    for task in TASKS {
        println!("  {:<8} {}", task.name, task.about);
    }
    println!("\n`cargo xtask TASK --help` shows a task's arguments.");
}

fn run() -> Result<(), String> {
    let mut arguments = Arguments::new(env::args().skip(1));
    let help = arguments.flag(&["-h", "--help"]);
    let mut name = arguments.subcommand();
    let asked = name.as_deref() == Some("help");
    if asked {
        name = arguments.subcommand();
    }
    let Some(name) = name else {
        list();
        return arguments.end();
    };
    let task = TASKS
        .iter()
        .find(|task| task.name == name)
        .ok_or_else(|| format!("no task {name}; `cargo xtask` lists them"))?;
    if help || asked {
        println!("{}\n\nUsage: {}", task.about, task.usage);
        return Ok(());
    }
    (task.main)(arguments)
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
