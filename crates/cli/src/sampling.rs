//! Options that say how text is generated: sampling, length, what ends it.

use std::hash::{BuildHasher, RandomState};

use clap::Args;
use models::llama::{ContextFull, FinishReason, GenerateOptions, Llama, Timings};
use models::sampler::SamplerOptions;
use models::tokenizer::EncodeOptions;

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// How text is generated.
#[derive(Debug, Args)]
pub(crate) struct Generating {
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Text that ends the answer and is not part of it; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on after a token that ends the text
    #[arg(long)]
    ignore_eos: bool,
    /// Positions for prompt and answer together [default: what the model was trained with, at most 4096]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context: Option<u32>,
    /// Forget the older half of the text when the context is full, instead of stopping
    #[arg(long)]
    context_shift: bool,
    #[command(flatten)]
    sampling: Sampling,
}

/// How the next token is chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
struct Sampling {
    /// Above 1 livelier, below 1 more sober; 0 always takes the most likely token
    #[arg(long, value_name = "X", default_value_t = SamplerOptions::default().temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among the N most likely tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = SamplerOptions::default().top_k)]
    top_k: usize,
    /// Choose among the most likely tokens whose probabilities add up to P; 1 for all
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Choose among tokens at least P times as likely as the most likely one; 0 for all
    #[arg(long, value_name = "P", default_value_t = SamplerOptions::default().min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Locally typical sampling with mass P; 1 for none
    #[arg(long, visible_alias = "typical-p", value_name = "P", default_value_t = SamplerOptions::default().typical_p, allow_negative_numbers = true)]
    typical: f32,
    /// Divide the logits of recent tokens by X; 1 for no penalty
    #[arg(long, value_name = "X", default_value_t = SamplerOptions::default().repetition_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Subtract X from the logits of recent tokens
    #[arg(long, value_name = "X", default_value_t = SamplerOptions::default().presence_penalty, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract X from the logits of recent tokens for each time that they occurred
    #[arg(long, value_name = "X", default_value_t = SamplerOptions::default().frequency_penalty, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// How many of the last tokens count as recent; -1 for all
    #[arg(long, value_name = "N", default_value_t = SamplerOptions::default().penalty_last_n as i64, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    repeat_last_n: i64,
    /// The same seed gives the same text [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Generating {
    /// The options that do not depend on the model, checked. Without a seed, one is drawn.
    pub(crate) fn options(&self, interrupt: &Interrupt) -> Result<GenerateOptions, Failure> {
        if self.stop.iter().any(String::is_empty) {
            return Err(Failure::Usage("--stop: an empty text would end every answer before it begins".into()));
        }
        let sampling = &self.sampling;
        let sampling = SamplerOptions {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical,
            repetition_penalty: sampling.repeat_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            penalty_last_n: usize::try_from(sampling.repeat_last_n).unwrap_or(usize::MAX),
            seed: sampling.seed.unwrap_or_else(another_seed),
        };
        sampling.validate().map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(GenerateOptions {
            max_tokens: self.max_tokens as usize,
            sampling,
            stop: self.stop.clone(),
            context_full: ContextFull::Stop,
            encode: EncodeOptions::default(),
            ignore_end: self.ignore_eos,
            cancel: Some(interrupt.flag()),
        })
    }

    /// What happens when the context is full: a shift keeps the token that begins the text, if the model has one.
    pub(crate) fn context_full(&self, model: &Llama) -> ContextFull {
        match self.context_shift {
            true => ContextFull::Shift { keep: usize::from(model.tokenizer().adds_bos()) },
            false => ContextFull::Stop,
        }
    }
}

/// A seed that differs from run to run. It fits in 32 bits, so that people can type it again.
fn another_seed() -> u64 {
    // The standard library seeds its hash maps from the system's randomness.
    RandomState::new().hash_one(0) >> 32
}

/// Why a generation ended, for people.
pub(crate) fn finish(reason: &FinishReason) -> String {
    match reason {
        FinishReason::EndOfText(_) => "end of text".into(),
        FinishReason::StopString(text) => format!("stop text {text:?}"),
        FinishReason::MaxTokens => "token limit (-n)".into(),
        FinishReason::ContextFull => "context full (see --context and --context-shift)".into(),
        FinishReason::Cancelled => "interrupted".into(),
        other => format!("{other:?}"),
    }
}

/// Why a generation ended, for programs.
pub(crate) fn finish_name(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfText(_) => "end_of_text",
        FinishReason::StopString(_) => "stop_string",
        FinishReason::MaxTokens => "max_tokens",
        FinishReason::ContextFull => "context_full",
        FinishReason::Cancelled => "cancelled",
        _ => "other",
    }
}

/// Speeds on one line: `prompt 5 tokens, 210.3/s; answer 8 tokens, 110.1/s; first token after 25 ms`.
pub(crate) fn speeds(timings: &Timings, tokens: usize) -> String {
    // A single token is chosen with the prompt's logits: nothing was decoded.
    let decode = match timings.decoded {
        0 => String::new(),
        _ => format!(", {:.1}/s", timings.decode_tokens_per_second()),
    };
    format!(
        "prompt {} tokens, {:.1}/s; answer {tokens} tokens{decode}; first token after {:.0} ms",
        timings.prompt_evaluated,
        timings.prompt_tokens_per_second(),
        timings.first_token_seconds * 1e3,
    )
}
