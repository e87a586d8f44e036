//! Tiny models that are cut, without data: what remains depends on their weights alone.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use models::prune::{PruneOptions, StructurePruning, What, prune};
use models::quantize::Manifest;

/// A tiny model and what of it is cut.
pub(crate) struct Cut {
    pub(crate) name: &'static str,
    /// The model's name among the tiny ones.
    pub(crate) model: &'static str,
    pub(crate) cut: StructurePruning,
}

const HALF_OF_ALL: StructurePruning =
    StructurePruning { neurons: 0.25, heads: 0.5, query_heads: 0.0, multiple: 32, reconstruct: false };

/// Every way in which heads and neurons are stored.
pub(crate) const CUTS: [Cut; 6] = [
    Cut { name: "llama-cut", model: "llama", cut: HALF_OF_ALL },
    // Query heads alone, with heads that never made up the width.
    Cut {
        name: "llama-heads-cut",
        model: "llama-heads",
        cut: StructurePruning { neurons: 0.0, heads: 0.0, query_heads: 0.5, multiple: 1, reconstruct: false },
    },
    Cut { name: "llama-bias-cut", model: "llama-bias", cut: HALF_OF_ALL },
    Cut { name: "llama-joined-cut", model: "llama-joined", cut: HALF_OF_ALL },
    // llama.cpp reads no Qwen 2 whose heads do not make up the width.
    Cut { name: "qwen2-cut", model: "qwen2", cut: StructurePruning { heads: 0.0, ..HALF_OF_ALL } },
    Cut { name: "gemma3-cut", model: "gemma3", cut: HALF_OF_ALL },
];

impl Cut {
    /// Cuts the model in a file into another.
    pub(crate) fn write(&self, input: &Path, output: &Path) -> Manifest {
        let options = PruneOptions { threads: 1, ..PruneOptions::new(What::Structure(self.cut)) };
        let chunks: models::prune::Chunks = Arc::new(|_, _| {});
        prune(input, output, &options, &chunks, &mut |_, _, _| ControlFlow::Continue(())).expect("the model is cut")
    }
}
