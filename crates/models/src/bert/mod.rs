//! BERT and its kin (`bert`, `roberta`, `xlm-roberta`, `camembert`, `distilbert`; MiniLM and the like): from safetensors or ONNX to vectors and labels.
//!
//! [`TextEmbedder`] gives vectors, [`Classifier`] labels of texts or tokens, [`FillMask`] the words for gaps. All are made of an
//! [`Encoder`]: a graph with the inputs and outputs of [`name`], whether built here from tensors ([`build`]) or imported, and the tokenizer beside it.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use models::bert::{BertOptions, EmbedOptions, TextEmbedder};
//!
//! let load = &mut |_, _| ControlFlow::Continue(());
//! let embedder = TextEmbedder::open("all-MiniLM-L6-v2", &BertOptions::default(), &EmbedOptions::default(), load)?;
//! let texts = ["The cat sits on the mat.", "A feline is resting on a rug."];
//! let vectors = embedder.embed(&texts, &mut |_, _| ControlFlow::Continue(()))?.vectors;
//! let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
//! # let _ = cosine;
//! # Ok::<(), models::Error>(())
//! ```
//!
//! # Files beside the model
//!
//! | file | what is taken from it |
//! | --- | --- |
//! | `tokenizer.json` | the tokenizer; its own padding and truncation are not used |
//! | `config.json` | sizes, activation, labels; must be there for safetensors |
//! | `tokenizer_config.json` | `model_max_length`, the mask token |
//! | `sentence_bert_config.json` | `max_seq_length` |
//! | `modules.json`, `1_Pooling/config.json` | pooling and normalization |

mod batches;
mod classifier;
mod config;
mod embedder;
mod encoder;
mod files;
mod fill_mask;
mod graph;
mod import;
mod labels;
mod names;
mod options;
mod pooling;
mod tokens;
mod weights;

pub use classifier::{Classification, Classifier, TokenLabel, entities};
pub use config::{Activation, BertConfig, Family, Task};
pub use embedder::{EmbedOptions, Embeddings, TextEmbedder};
pub use encoder::Encoder;
pub(crate) use encoder::check;
pub use fill_mask::{Fill, FillMask};
pub use graph::{build, name};
pub(crate) use import::{built, tokens_of};
pub use labels::{Labels, Scored, Scores};
pub use options::{BertOptions, DEFAULT_BATCH, TextProgress};
pub use pooling::{Pooling, normalize};
pub use tokens::{THREAD_NAME, Text, TextTokenizer, Tokens};
