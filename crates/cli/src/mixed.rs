//! `polaris quantize --type mixed`: a type for each tensor, so that a budget is met.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use core_tensor::FileAccess;
use gpu_polaris::estimate::Card;
use loader_gguf::Gguf;
use models::backends::{BackendOptions, Device};
use models::llama::{KvDType, LlamaConfig};
use models::quantize::{MixedBudget, MixedOptions, MixedReport, Probes, QuantizeOptions, assign_mixed};

use crate::estimate;
use crate::failure::{Failure, option};
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::output::{self, bytes, shown};

/// What only `--type mixed` has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mixed precision (--type mixed)")]
pub(crate) struct Mixed {
    /// The size of the file at most: 3.5GiB, 900MB, bytes
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["max_kl", "vram"])]
    target_size: Option<u64>,
    /// The mean KL divergence from the original on --data at most, in nats
    #[arg(long, value_name = "X", conflicts_with = "vram", value_parser = above_zero)]
    max_kl: Option<f64>,
    /// The memory of a graphics card that the model is to fit with its KV cache (--context): 8GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    vram: Option<u64>,
    /// Positions that are to fit the card's memory
    #[arg(long, value_name = "N", default_value_t = 4096, requires = "vram", value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// The text that it is measured on what an error of each tensor costs; without one relative errors count alike
    #[arg(long, value_name = "TEXT")]
    data: Option<PathBuf>,
    /// Tokens of a chunk of the text [default: 256]
    #[arg(long, value_name = "N", requires = "data", value_parser = clap::value_parser!(u32).range(4..))]
    probe_context: Option<u32>,
    /// Chunks that each measurement takes, at equal distances [default: 2]
    #[arg(long, value_name = "N", requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    probe_chunks: Option<u32>,
    /// Measure attention and feed-forward of a layer at once instead of each tensor: faster, and coarser; types coarser than that are measured for each tensor
    #[arg(long, requires = "data")]
    probe_parts: bool,
}

impl Mixed {
    /// An option that makes no sense without `--type mixed`.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--target-size", self.target_size.is_some()),
            ("--max-kl", self.max_kl.is_some()),
            ("--vram", self.vram.is_some()),
            ("--data", self.data.is_some()),
            ("--probe-context", self.probe_context.is_some()),
            ("--probe-chunks", self.probe_chunks.is_some()),
            ("--probe-parts", self.probe_parts),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    /// Chooses the types, and tells `options` of them.
    pub(crate) fn choose(
        &self,
        input: &Path,
        options: &mut QuantizeOptions,
        interrupt: &Interrupt,
    ) -> Result<MixedReport, Failure> {
        let budget = match (self.target_size, self.max_kl, self.vram) {
            (Some(bytes), ..) => MixedBudget::FileBytes(bytes),
            (_, Some(limit), _) => MixedBudget::Divergence(limit),
            (.., Some(memory)) => MixedBudget::TensorBytes(self.room(input, memory)?),
            _ => {
                let reason = "--type mixed needs a budget: --target-size, --max-kl or --vram";
                return Err(Failure::Usage(reason.into()));
            }
        };
        if self.max_kl.is_some() && self.data.is_none() {
            return Err(Failure::Usage("--max-kl is measured on a text: give --data".into()));
        }
        let standard = MixedOptions::new(budget);
        let mixed = MixedOptions {
            text: self.data.as_deref().map(read_text).transpose()?,
            dataset: self.data.as_ref().map_or(String::new(), |path| path.display().to_string()),
            context: self.probe_context.map_or(standard.context, |tokens| tokens as usize),
            chunks: self.probe_chunks.map_or(standard.chunks, |chunks| chunks as usize),
            probes: if self.probe_parts { Probes::Parts } else { Probes::Tensors },
            importances: options.importances.clone(),
            assign: options.assign,
            tensor_types: options.tensor_types.clone(),
            allow_requantize: options.allow_requantize,
            // On the processor, so that the same command gives the same types everywhere.
            backend: BackendOptions {
                device: Device::Cpu,
                threads: Some(options.threads),
                ..BackendOptions::default()
            },
            threads: options.threads,
            access: options.access,
            ..standard
        };
        let report = assign_mixed(input, &mixed, &mut |done, total, what| {
            output::note(&format!("{done} of {total}: {}", shown(what)));
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let report = report.map_err(|error| match error {
            models::Error::Option { name: "context", reason } => Failure::Runtime(option("probe-context", &reason)),
            error => error.into(),
        })?;
        options.mixture = report.main_mixture();
        options.exact = report.types().into_iter().collect();
        Ok(report)
    }

    /// What a card of that memory has for weights beside the states and intermediate results.
    fn room(&self, input: &Path, memory: u64) -> Result<u64, Failure> {
        let gguf = Gguf::open(input, FileAccess::Map)?;
        let config = LlamaConfig::from_gguf(&gguf)?;
        let context = self.context as usize;
        // Which card does not matter to what a graph's states take.
        let card = Card::all().first().copied().ok_or_else(|| Failure::Runtime("no card is known".into()))?;
        let card = card.with_memory(memory);
        let (found, _) = estimate::predict(card, &config, &gguf, KvDType::F16, context)?;
        let taken = found.states_bytes + found.working_bytes;
        card.usable().checked_sub(taken).ok_or_else(|| {
            Failure::Runtime(format!(
                "{} are taken by the KV cache of {context} positions and working memory alone, and the card has {} to use",
                bytes(taken),
                bytes(card.usable())
            ))
        })
    }
}

/// A number above 0.
pub(crate) fn above_zero(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err("expected a number above 0".to_owned()) }
}

/// Bytes: a number, or one with kB, MB, GB (powers of 1000), KiB, MiB or GiB (powers of 1024).
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 9] = [
        ("kib", 1024.0),
        ("mib", 1_048_576.0),
        ("gib", 1_073_741_824.0),
        ("tib", 1_099_511_627_776.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("b", 1.0),
    ];
    let lower = text.trim().to_ascii_lowercase();
    let unit = UNITS.iter().find_map(|(name, factor)| Some((lower.strip_suffix(name)?, *factor)));
    let (number, factor) = unit.unwrap_or((&lower, 1.0));
    let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is no size; 3.5GiB and 900MB are"))?;
    let bytes = number * factor;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("{text:?} is no size of a file")) }
}

/// The charts beside the result; their paths.
pub(crate) fn write_charts(report: &MixedReport, result: &Path) -> Result<Vec<PathBuf>, Failure> {
    let charts = [("sensitivity", report.sensitivity_chart()), ("size", report.size_chart())];
    let mut paths = Vec::new();
    for (name, chart) in charts {
        let mut path = OsString::from(result);
        path.push(format!(".{name}.svg"));
        let path = PathBuf::from(path);
        crate::manifest::write_whole(&path, &chart.to_svg())?;
        paths.push(path);
    }
    Ok(paths)
}

/// Each tensor, its choice and why.
pub(crate) fn as_text(report: &MixedReport) -> String {
    let mut text = format!("  type   bits       size    error  sensitivity      cost  tensor ({})\n", report.budget);
    for tensor in &report.tensors {
        let _ = writeln!(
            text,
            "{:>6} {:>6.2} {:>10} {:>8.2e} {:>12.3e} {:>9.2e}  {}: {}",
            tensor.to,
            tensor.bits,
            bytes(tensor.bytes),
            tensor.relative_error,
            tensor.sensitivity,
            tensor.cost,
            shown(&tensor.name),
            tensor.reason
        );
    }
    let measured = report.measured.map_or(String::new(), |measured| format!(", measured {measured:.5} nats"));
    let others = report.bytes.saturating_sub(report.tensors.iter().map(|tensor| tensor.bytes).sum());
    let _ = writeln!(text, "{} in other tensors, for which nothing was to choose", bytes(others));
    let _ = writeln!(text, "{} of tensors, predicted cost {:.5}{measured}", bytes(report.bytes), report.predicted);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_both_kinds() {
        assert_eq!(size("3.5GiB"), Ok(3_758_096_384));
        assert_eq!(size("900MB"), Ok(900_000_000));
        assert_eq!(size(" 12 kib "), Ok(12_288));
        assert_eq!(size("77"), Ok(77));
        for wrong in ["", "GiB", "-1MB", "1e30GB", "nan", "0"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
