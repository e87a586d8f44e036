//! How a command ends when it does not succeed: one message, one exit code.

use std::error::Error as StdError;
use std::io;

use models::chat_template::ChatTemplateError;
use polaris_runtime::RuntimeError;

use crate::output::bytes;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something that makes no sense. Exit code 2.
    Usage(String),
    /// Something went wrong while the command ran. Exit code 1.
    Runtime(String),
    /// What was compared is further apart than a threshold allows. Exit code 3.
    Threshold(String),
    /// The user pressed Ctrl-C. No message, exit code 130, as shells have it for a program that SIGINT ended.
    Interrupted,
    /// Whoever read the output has gone (`polaris ... | head`). Nobody is there to be told; exit code 0.
    OutputClosed,
}

impl Failure {
    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Runtime(_) => 1,
            Failure::Threshold(_) => 3,
            Failure::Interrupted => 130,
            Failure::OutputClosed => 0,
        }
    }

    /// What the user is told, if anything.
    pub(crate) fn message(&self) -> Option<&str> {
        match self {
            Failure::Usage(message) | Failure::Runtime(message) | Failure::Threshold(message) => Some(message),
            Failure::Interrupted | Failure::OutputClosed => None,
        }
    }

    /// A failure to read a file that the user named.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Failure {
        Failure::Runtime(format!("{}: {error}", path.display()))
    }
}

impl From<models::Error> for Failure {
    fn from(error: models::Error) -> Failure {
        match &error {
            models::Error::Cancelled => Failure::Interrupted,
            models::Error::ChatTemplate(ChatTemplateError::Missing) => {
                Failure::Runtime(format!("{error}: give one with --chat-template, or use generate without --chat"))
            }
            models::Error::Option { name, reason } => Failure::Runtime(option(name, reason)),
            models::Error::Runtime(runtime) if runtime.is_cancelled() => Failure::Interrupted,
            models::Error::Runtime(runtime) => Failure::Runtime(no_memory(runtime).unwrap_or(with_sources(&error))),
            _ => Failure::Runtime(with_sources(&error)),
        }
    }
}

/// What is wrong with an option, by the name that the command line has for it.
pub(crate) fn option(name: &str, reason: &str) -> String {
    match name {
        // These are no options of a command.
        "model" | "slots" => format!("{name}: {reason}"),
        "vector_rate" => format!("--norm-rate: {reason}"),
        _ => format!("--{}: {reason}", name.replace('_', "-")),
    }
}

/// What to say and what to do when a model does not fit.
fn no_memory(error: &RuntimeError) -> Option<String> {
    let RuntimeError::NoMemory { needed, weights, states, arena, device, available, .. } = error else {
        return None;
    };
    // Encoders hold no state.
    let less = match states {
        0 => "a smaller --batch or --max-tokens",
        _ => "a shorter --context or --kv-dtype q8_0",
    };
    let [needed, weights, states, arena, available] = [needed, weights, states, arena, available].map(|n| bytes(*n));
    Some(format!(
        "not enough memory: {needed} are needed (weights {weights}, KV cache {states}, working memory {arena}), and {available} is what \
         there is ({device}); {less} takes less"
    ))
}

impl From<loader_gguf::GgufError> for Failure {
    fn from(error: loader_gguf::GgufError) -> Failure {
        Failure::Runtime(with_sources(&error))
    }
}

impl From<loader_torch::TorchError> for Failure {
    fn from(error: loader_torch::TorchError) -> Failure {
        Failure::Runtime(with_sources(&error))
    }
}

/// An error's text with the texts of its sources, each once: many errors have their source's text in their own.
fn with_sources(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Layer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.1.as_deref().map(|layer| layer as &dyn StdError)
        }
    }

    #[test]
    fn a_source_is_told_once_whether_or_not_the_error_tells_it() {
        let error = Layer("cannot open: no such file", Some(Box::new(Layer("no such file", None))));
        assert_eq!(with_sources(&error), "cannot open: no such file");
        let error = Layer("cannot open", Some(Box::new(Layer("no such file", None))));
        assert_eq!(with_sources(&error), "cannot open: no such file");
    }

    #[test]
    fn a_model_that_does_not_fit_comes_with_advice() {
        let error = RuntimeError::NoMemory {
            what: "llama".into(),
            needed: 3_000_000_000,
            weights: 1_000_000_000,
            states: 1_900_000_000,
            arena: 100_000_000,
            device: "CPU".into(),
            available: 2_000_000_000,
        };
        let failure = Failure::from(models::Error::Runtime(error));
        let message = failure.message().unwrap_or_default();
        assert!(message.contains("3.0 GB are needed (weights 1.0 GB, KV cache 1.9 GB"), "{message}");
        assert!(message.contains("--context"), "{message}");
    }

    #[test]
    fn options_have_the_names_of_the_command_line() {
        for (name, shown) in
            [("scale_rate", "--scale-rate: x"), ("vector_rate", "--norm-rate: x"), ("model", "model: x")]
        {
            let failure = Failure::from(models::Error::Option { name, reason: "x".into() });
            assert_eq!(failure.message(), Some(shown));
        }
    }

    #[test]
    fn a_cancelled_load_is_an_interruption_and_not_an_error() {
        assert!(matches!(Failure::from(models::Error::Cancelled), Failure::Interrupted));
        assert!(matches!(Failure::from(models::Error::EmptyPrompt), Failure::Runtime(_)));
    }
}
