//! `polaris fill-mask`: the words for gaps.

use std::fmt::Write as _;

use clap::Args;
use models::bert::{Fill, FillMask};
use serde::Serialize;

use crate::encoder::{EncoderArguments, Texts, go_on};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::{self, shown};

const EXAMPLES: &str = "\
Examples:
  polaris fill-mask -m bert-base-uncased -p 'Paris is the [MASK] of France.'
  polaris fill-mask -m roberta-base -p 'Paris is the <mask> of France.' --top-k 10
  polaris fill-mask -m bert-base-uncased --file gaps.txt --json | jq '.results[].gaps[0][0].text'

How a gap is written depends on the model; a text without one is answered with how.";

/// Fill the gaps of a text with a masked language model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    encoder: EncoderArguments,
    #[command(flatten)]
    texts: Texts,
    /// Tokens to print for each gap
    #[arg(short = 'k', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top_k: u32,
    /// Print one JSON object: results, each with text and gaps (for each gap: token, text, score, sequence)
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    results: Vec<Filled<'a>>,
}

#[derive(Serialize)]
struct Filled<'a> {
    text: &'a str,
    gaps: Vec<Vec<Fill>>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let texts = arguments.texts.read()?;
    let model =
        arguments.encoder.open(&interrupt, |path, encoder, progress| FillMask::open(path, encoder, progress))?;
    let _busy = interrupt.busy();
    let mut results = Vec::with_capacity(texts.len());
    for text in &texts {
        let gaps = model.fill(text, arguments.top_k as usize, &mut |_, _| go_on(&interrupt))?;
        results.push(Filled { text, gaps });
    }
    if arguments.json {
        return output::write_json(&Answer { results });
    }
    output::write(&lines(&results))
}

fn lines(results: &[Filled<'_>]) -> String {
    let mut text = String::new();
    for result in results {
        for gap in &result.gaps {
            let _ = writeln!(text, "{}", shown(result.text));
            for fill in gap {
                let _ = writeln!(text, "  {:.4}  {}  {}", fill.score, shown(&fill.text), shown(&fill.sequence));
            }
        }
    }
    text
}
