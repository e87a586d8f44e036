//! `polaris devices`: what can run a model.

use std::fmt::Write as _;

use clap::Args;
use core_tensor::Backend;
use cpu_kernels::{CpuBackend, CpuOptions};
use gpu_polaris::DeviceKind;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, bytes};

const EXAMPLES: &str = "\
Examples:
  polaris devices
  polaris devices --json | jq '.vulkan[0].name'
  polaris generate -m model.gguf -p Hello --device vulkan:1

Without a Vulkan loader or driver the list has the processor alone; that is no error.";

/// List the devices that can run a model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Devices {
    cpu: String,
    vulkan: Vec<Device>,
    /// Why there is no Vulkan device.
    vulkan_missing: Option<String>,
    /// The device that `auto` takes.
    auto: String,
}

#[derive(Debug, Serialize)]
struct Device {
    /// What `--device` calls it.
    device: String,
    name: String,
    kind: String,
    driver: String,
    api: String,
    memory_bytes: u64,
    subgroup_size: u32,
    /// Why it cannot be used.
    refusal: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let found = gpu_polaris::devices();
    let missing = found.as_ref().err().map(ToString::to_string);
    let found = found.unwrap_or_default();
    let graphics = found.iter().enumerate().filter(|(_, d)| d.refusal.is_none() && d.kind != DeviceKind::Software);
    let auto = graphics.min_by_key(|(_, d)| d.kind).map_or("cpu".to_owned(), |(number, _)| format!("vulkan:{number}"));
    let device = |(number, device): (usize, gpu_polaris::FoundDevice)| Device {
        device: format!("vulkan:{number}"),
        name: device.name,
        kind: device.kind.to_string(),
        driver: device.driver,
        api: device.api,
        memory_bytes: device.memory,
        subgroup_size: device.subgroup_size,
        refusal: device.refusal,
    };
    let cpu = CpuBackend::new(CpuOptions::default()).description();
    let vulkan = found.into_iter().enumerate().map(device).collect();
    let devices = Devices { cpu, vulkan, vulkan_missing: missing, auto };
    match arguments.json {
        true => output::write_json(&devices),
        false => output::write(&as_text(&devices)),
    }
}

fn as_text(devices: &Devices) -> String {
    let mut text = format!("{:<10} {}\n", "cpu", devices.cpu);
    for device in &devices.vulkan {
        let Device { device: number, name, kind, driver, api, memory_bytes, subgroup_size, refusal } = device;
        let memory = bytes(*memory_bytes);
        let _ = writeln!(
            text,
            "{number:<10} {name} ({kind}, {memory}, subgroups of {subgroup_size}); {driver}, Vulkan {api}"
        );
        if let Some(refusal) = refusal {
            let _ = writeln!(text, "{:<10}   cannot be used: {refusal}", "");
        }
    }
    if let Some(missing) = &devices.vulkan_missing {
        let _ = writeln!(text, "{:<10} none: {missing}", "vulkan");
    }
    let _ = writeln!(text, "{:<10} {}", "auto", devices.auto);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_there_is_and_why_not() {
        let device = Device {
            device: "vulkan:0".into(),
            name: "Some Card".into(),
            kind: "discrete".into(),
            driver: "radv".into(),
            api: "1.3.230".into(),
            memory_bytes: 8 << 30,
            subgroup_size: 64,
            refusal: Some("it lacks shaderInt64".into()),
        };
        let (cpu, auto) = ("CPU".to_owned(), "cpu".to_owned());
        let text = as_text(&Devices { cpu, vulkan: vec![device], vulkan_missing: None, auto });
        assert!(text.contains("vulkan:0   Some Card (discrete, 8.6 GB, subgroups of 64)"), "{text}");
        assert!(text.contains("cannot be used: it lacks shaderInt64"), "{text}");
    }
}
