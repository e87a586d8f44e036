//! The models and their pipelines, on tiny files: one program, which is linked once. A file is a part of it when it is named here.

mod architectures;
mod chat_template_reference;
mod configuration;
mod encoders;
mod pipeline;
mod prune;
mod pruned;
mod quantize;
mod quantized;
mod quantized_reference;
mod reconstruct;
mod tiny;
mod tokenizer_reference;
