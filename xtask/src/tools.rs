//! The programs that the subcommands call, and how to install those that are missing.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{command, vulkan};

/// Python's name on this system.
pub(crate) const PYTHON: &str = if cfg!(windows) { "python" } else { "python3" };

/// A program, or part of one, that some subcommand needs.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) needed_for: &'static str,
    probe: Probe,
    install: Install,
}

/// What shows that a tool is there.
#[derive(Debug)]
enum Probe {
    /// A command that succeeds.
    Command(&'static [&'static str]),
    /// A file that is found.
    File(fn() -> Option<PathBuf>),
}

#[derive(Debug)]
enum Install {
    /// The same command everywhere.
    Command(&'static str),
    /// Package names of apt, dnf, pacman, zypper, apk and brew, in this order.
    Packages([&'static str; 6]),
}

const MANAGERS: [(&str, &str); 6] = [
    ("apt-get", "sudo apt-get install -y"),
    ("dnf", "sudo dnf install -y"),
    ("pacman", "sudo pacman -S --needed"),
    ("zypper", "sudo zypper install -y"),
    ("apk", "sudo apk add"),
    ("brew", "brew install"),
];

/// Every tool that a subcommand may need.
pub(crate) const TOOLS: &[Tool] = &[
    Tool {
        name: "cargo",
        needed_for: "everything",
        probe: Probe::Command(&["cargo", "--version"]),
        install: Install::Command("see https://rustup.rs"),
    },
    Tool {
        name: "cc",
        needed_for: "linking",
        probe: Probe::Command(&["cc", "--version"]),
        install: Install::Packages(["gcc libc6-dev", "gcc", "gcc", "gcc", "gcc musl-dev", "gcc"]),
    },
    Tool {
        name: "rustfmt",
        needed_for: "ci",
        probe: Probe::Command(&["cargo", "fmt", "--version"]),
        install: Install::Command("rustup component add rustfmt"),
    },
    Tool {
        name: "clippy",
        needed_for: "ci",
        probe: Probe::Command(&["cargo", "clippy", "--version"]),
        install: Install::Command("rustup component add clippy"),
    },
    Tool {
        name: PYTHON,
        needed_for: "fetch, demo, ci, bench",
        probe: Probe::Command(&[PYTHON, "--version"]),
        install: Install::Packages(["python3", "python3", "python", "python3", "python3", "python"]),
    },
    Tool {
        name: "pip",
        needed_for: "fetch, demo, ci, bench",
        probe: Probe::Command(&[PYTHON, "-m", "pip", "--version"]),
        install: Install::Packages(["python3-pip", "python3-pip", "python-pip", "python3-pip", "py3-pip", "python"]),
    },
    Tool {
        name: "cmake",
        needed_for: "bench",
        probe: Probe::Command(&["cmake", "--version"]),
        install: Install::Packages(["cmake"; 6]),
    },
    Tool {
        name: "c++",
        needed_for: "shaders, ci, bench",
        probe: Probe::Command(&["c++", "--version"]),
        install: Install::Packages(["g++", "gcc-c++", "gcc", "gcc-c++", "g++", "gcc"]),
    },
    Tool {
        name: "make",
        needed_for: "bench",
        probe: Probe::Command(&["make", "--version"]),
        install: Install::Packages(["make"; 6]),
    },
    Tool {
        name: "spirv-val",
        needed_for: "shaders --check, ci",
        probe: Probe::Command(&["spirv-val", "--version"]),
        install: Install::Packages(["spirv-tools"; 6]),
    },
    Tool {
        name: "libvulkan",
        needed_for: "gcn4, ci",
        probe: Probe::File(vulkan::loader),
        install: Install::Packages([
            "libvulkan1",
            "vulkan-loader",
            "vulkan-icd-loader",
            "libvulkan1",
            "vulkan-loader",
            "vulkan-loader",
        ]),
    },
    Tool {
        name: "lavapipe",
        needed_for: "ci",
        probe: Probe::File(|| vulkan::driver(vulkan::SOFTWARE)),
        install: Install::Packages([
            "mesa-vulkan-drivers",
            "mesa-vulkan-drivers",
            "vulkan-swrast",
            "libvulkan_lvp",
            "mesa-vulkan-swrast",
            "mesa",
        ]),
    },
    Tool {
        name: "radv",
        needed_for: "gcn4, ci",
        probe: Probe::File(|| vulkan::driver("radeon_icd")),
        install: Install::Packages([
            "mesa-vulkan-drivers",
            "mesa-vulkan-drivers",
            "vulkan-radeon",
            "libvulkan_radeon",
            "mesa-vulkan-ati",
            "mesa",
        ]),
    },
    Tool {
        name: "vk-layer",
        needed_for: "ci (the Khronos validation layer)",
        probe: Probe::File(|| vulkan::layer("VkLayer_khronos_validation")),
        install: Install::Packages([
            "vulkan-validationlayers",
            "vulkan-validation-layers",
            "vulkan-validation-layers",
            "vulkan-validationlayers",
            "vulkan-validation-layers",
            "vulkan-validationlayers",
        ]),
    },
];

impl Tool {
    /// The tool of this name. Only called with names that are in [`TOOLS`].
    fn named(name: &str) -> Option<&'static Tool> {
        TOOLS.iter().find(|tool| tool.name == name)
    }

    /// The first line that the tool says about itself, or nothing if it is not there.
    pub(crate) fn version(&self) -> Option<String> {
        let (program, arguments) = match self.probe {
            Probe::Command(command) => command.split_first()?,
            Probe::File(find) => return find().map(|file| file.display().to_string()),
        };
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout);
        // pip goes on with where it lies.
        let line = text.lines().next().unwrap_or_default();
        Some(line.split(" from ").next().unwrap_or(line).trim().to_owned())
    }

    /// The command that installs it here.
    pub(crate) fn install_command(&self) -> String {
        match &self.install {
            Install::Command(command) => (*command).to_owned(),
            Install::Packages(packages) => {
                let here = MANAGERS.iter().zip(packages).find(|((manager, _), _)| find_program(manager).is_some());
                match here {
                    Some(((_, install), package)) => format!("{install} {package}"),
                    None => format!("with the system's package manager (Debian: {} {})", MANAGERS[0].1, packages[0]),
                }
            }
        }
    }

    fn missing(&self) -> String {
        format!("{} is missing (needed for {}); install it: {}", self.name, self.needed_for, self.install_command())
    }
}

/// What to say when a program could not be started because it does not exist.
pub(crate) fn missing_program(program: &str) -> String {
    match Tool::named(program) {
        Some(tool) => tool.missing(),
        None => format!("{program} is missing"),
    }
}

fn missing(names: &[&str]) -> Vec<&'static Tool> {
    names.iter().filter_map(|name| Tool::named(name)).filter(|tool| tool.version().is_none()).collect()
}

/// Fails with one line per missing tool.
pub(crate) fn require(names: &[&str]) -> Result<(), String> {
    let missing: Vec<String> = missing(names).into_iter().map(Tool::missing).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
}

/// Like [`require`], but installs Debian's packages first, if the user is root on such a system, as in a container.
pub(crate) fn provide(names: &[&str]) -> Result<(), String> {
    let packages = packages_for(&missing(names));
    if !packages.is_empty() && find_program("apt-get").is_some() && is_root() {
        let apt = |arguments: &[&str]| {
            let mut apt = Command::new("apt-get");
            command::run(apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
        };
        apt(&["update"])?;
        apt(&[&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat())?;
    }
    require(names)
}

/// Debian's packages with these tools, each once.
fn packages_for(tools: &[&Tool]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = Vec::new();
    for tool in tools {
        let Install::Packages([debian, ..]) = &tool.install else { continue };
        for package in debian.split(' ') {
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
    }
    packages
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stdin(Stdio::null()).output();
    id.is_ok_and(|output| output.status.success() && output.stdout.trim_ascii() == b"0")
}

/// Where the search path has this program.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(format!("{name}{}", env::consts::EXE_SUFFIX)))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_required_tool_name_is_in_the_table() {
        for name in ["cargo", "cc", "rustfmt", "clippy", PYTHON, "pip", "cmake", "c++", "make"] {
            assert!(Tool::named(name).is_some(), "{name}");
        }
        for name in crate::ci::TOOLS {
            assert!(Tool::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_package_with_several_tools_is_installed_once() {
        let tools: Vec<&Tool> =
            ["cc", "lavapipe", "radv", "rustfmt"].iter().filter_map(|name| Tool::named(name)).collect();
        assert_eq!(packages_for(&tools), ["gcc", "libc6-dev", "mesa-vulkan-drivers"]);
    }

    #[test]
    fn a_missing_tool_is_named_with_what_it_is_for_and_how_to_install_it() {
        let tool = Tool {
            name: "polaris-no-such-tool",
            needed_for: "nothing",
            probe: Probe::Command(&["polaris-no-such-tool"]),
            install: Install::Command("install it so"),
        };
        assert_eq!(tool.version(), None);
        assert_eq!(tool.missing(), "polaris-no-such-tool is missing (needed for nothing); install it: install it so");
    }
}
