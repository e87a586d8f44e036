//! The pipeline on tiny models, with the reference backend.

use crate::tiny;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use core_tensor::{
    Backend, BackendError, Bindings, DeviceMemory, Graph, Node, Program, Progress, ReferenceBackend, Session, Weights,
};
use models::Error;
use models::llama::{
    ChatOptions, ContextFull, FinishReason, GenerateOptions, Generation, KvDType, Llama, LlamaOptions,
    PerplexityOptions, Row, SamplerOptions,
};

fn open_with(name: &str, context: usize, kv_dtype: KvDType) -> Llama {
    let backends: [Arc<dyn Backend>; 1] = [Arc::new(ReferenceBackend::default())];
    let options = LlamaOptions { context: Some(context), kv_dtype, ..LlamaOptions::default() };
    let progress = &mut |_: u64, _: u64| ControlFlow::Continue(());
    Llama::from_gguf(tiny::open(&tiny::spec(name)), &backends, &options, progress).unwrap()
}

fn open(name: &str, context: usize) -> Llama {
    open_with(name, context, KvDType::F32)
}

/// The reference as if it were far away: of the logits only the highest come back. Counts the programs that give all of them.
#[derive(Default)]
struct Remote {
    reference: ReferenceBackend,
    all_logits: AtomicUsize,
}

impl Backend for Remote {
    fn name(&self) -> &str {
        "remote"
    }

    fn description(&self) -> String {
        "remote".into()
    }

    fn memory(&self) -> DeviceMemory {
        self.reference.memory()
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String> {
        self.reference.supports(graph, node)
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        self.reference.load_weights(graph, progress)
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        // All logits are one output, the highest and their tokens two.
        self.all_logits.fetch_add(usize::from(graph.outputs().len() != 2), Ordering::Relaxed);
        self.reference.compile(graph, weights, bounds)
    }

    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError> {
        self.reference.new_session(graph, slots, bounds)
    }
}

#[test]
fn candidates_alone_give_the_same_text_as_all_logits_wherever_they_are_enough() {
    let near = open("llama", 64);
    let sampling = |temperature, top_k, repetition_penalty| SamplerOptions {
        temperature,
        top_k,
        repetition_penalty,
        seed: 7,
        ..SamplerOptions::default()
    };
    // Whether the highest logits are enough: not for more of them than come back, nor for penalties.
    for (sampling, enough) in [
        (SamplerOptions::greedy(), true),
        (sampling(0.9, 40, 1.0), true),
        (sampling(1.5, 64, 1.0), true),
        (sampling(0.9, 65, 1.0), false),
        (sampling(0.9, 0, 1.0), false),
        (sampling(0.9, 40, 1.1), false),
    ] {
        let options = GenerateOptions { sampling, ..greedy(24) };
        let remote = Arc::new(Remote::default());
        let backends: [Arc<dyn Backend>; 1] = [remote.clone()];
        let far = LlamaOptions { context: Some(64), kv_dtype: KvDType::F32, ..LlamaOptions::default() };
        let progress = &mut |_: u64, _: u64| ControlFlow::Continue(());
        let far = Llama::from_gguf(tiny::open(&tiny::spec("llama")), &backends, &far, progress).unwrap();
        assert_eq!(generate(&far, "hello", &options).tokens, generate(&near, "hello", &options).tokens, "{options:?}");
        assert_eq!(remote.all_logits.load(Ordering::Relaxed) == 0, enough, "{options:?}");
    }
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: SamplerOptions::greedy(), ignore_end: true, ..GenerateOptions::default() }
}

fn generate(model: &Llama, prompt: &str, options: &GenerateOptions) -> Generation {
    model.generate(prompt, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn highest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

#[test]
fn generating_is_taking_the_best_token_again_and_again() {
    let model = open("llama", 64);
    let generation = generate(&model, "hello", &greedy(12));
    assert_eq!(generation.prompt_tokens, model.tokenize("hello", models::tokenizer::EncodeOptions::default()));
    assert_eq!((generation.tokens.len(), &generation.finish), (12, &FinishReason::MaxTokens));
    let mut tokens = generation.prompt_tokens.clone();
    for token in &generation.tokens {
        assert_eq!(highest(model.logits(&tokens).unwrap().last().unwrap()), *token);
        tokens.push(*token);
    }
    assert_eq!((generation.timings.prompt_evaluated, generation.timings.decoded), (5, 11));
}

#[test]
fn pieces_join_to_the_text_and_name_the_tokens() {
    let model = open("qwen2", 64);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let generation = model
        .generate("hi", &greedy(20), &mut |piece| {
            text.push_str(piece.text);
            tokens.extend(piece.token);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((text, tokens), (generation.text, generation.tokens));
}

#[test]
fn the_token_that_ends_a_text_ends_the_generation_and_is_no_text() {
    let model = open("llama", 64);
    // Random models seldom end: a repetition "penalty" of less than 1 drives the model to what it said, here the prompt's end token.
    let sampling = SamplerOptions {
        presence_penalty: -1000.0,
        penalty_last_n: usize::MAX,
        temperature: 0.0,
        ..SamplerOptions::default()
    };
    let options = GenerateOptions { sampling, max_tokens: 5, ..GenerateOptions::default() };
    let generation = generate(&model, "<|im_end|>", &options);
    assert_eq!(generation.finish, FinishReason::EndOfText(tiny::IM_END));
    assert_eq!((generation.tokens, generation.text.as_str()), (vec![tiny::IM_END], ""));
    let on = generate(&model, "<|im_end|>", &GenerateOptions { ignore_end: true, ..options });
    assert_eq!((on.finish, on.tokens.len()), (FinishReason::MaxTokens, 5));
}

#[test]
fn a_stop_string_ends_the_generation_and_is_left_out() {
    let model = open("llama", 64);
    let free = generate(&model, "hello", &greedy(24));
    let middle = free.text.char_indices().nth(free.text.chars().count() / 2).unwrap().0;
    let stop: String = free.text[middle..].chars().take(2).collect();
    let expected = &free.text[..free.text.find(&stop).unwrap()];
    let mut streamed = String::new();
    let generation = model
        .generate("hello", &GenerateOptions { stop: vec![stop.clone()], ..greedy(24) }, &mut |piece| {
            streamed.push_str(piece.text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(generation.finish, FinishReason::StopString(stop));
    assert_eq!((generation.text.as_str(), streamed.as_str()), (expected, expected));
}

#[test]
fn a_caller_can_stop_by_answer_or_by_flag() {
    let model = open("llama", 64);
    let mut count = 0;
    let generation = model
        .generate("hello", &greedy(24), &mut |_| {
            count += 1;
            if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((generation.finish, generation.tokens.len()), (FinishReason::Cancelled, 3));
    let cancel = Arc::new(AtomicBool::new(false));
    let options = GenerateOptions { cancel: Some(cancel.clone()), ..greedy(24) };
    let generation = model
        .generate("hello", &options, &mut |_| {
            cancel.store(true, Ordering::Relaxed);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((generation.finish, generation.tokens.len()), (FinishReason::Cancelled, 1));
    let before = generate(&model, "hello", &options);
    assert_eq!((before.finish, before.tokens.len()), (FinishReason::Cancelled, 0));
}

#[test]
fn prompts_that_do_not_fit_or_are_empty_are_refused() {
    let model = open("llama", 16);
    let fails =
        |prompt: &str| model.generate(prompt, &greedy(4), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert_eq!(
        fails("0123456789abcdef"),
        "the prompt has 16 tokens; a context of 16 has room for 15 beside what is to be generated"
    );
    assert_eq!(fails(""), "the prompt is empty, and this model adds no token to begin a text with");
    assert_eq!(
        model.logits(&[1; 17]).unwrap_err().to_string(),
        "the prompt has 17 tokens; a context of 16 has room for 16 beside what is to be generated"
    );
    assert_eq!(model.logits(&[259]).unwrap_err().to_string(), "token 259 is outside of the vocabulary of 259");
    let sampling = SamplerOptions { top_p: 2.0, ..SamplerOptions::default() };
    let options = GenerateOptions { sampling, ..GenerateOptions::default() };
    assert!(matches!(model.generate("a", &options, &mut |_| ControlFlow::Continue(())), Err(Error::Sampler(_))));
}

#[test]
fn a_full_context_stops_the_generation_or_is_shifted() {
    for name in ["llama", "gemma3"] {
        let model = open(name, 16);
        let stopped = generate(&model, "0123456789", &greedy(100));
        assert_eq!((stopped.finish, stopped.tokens.len()), (FinishReason::ContextFull, 7), "{name}");
        let options = GenerateOptions { context_full: ContextFull::Shift { keep: 4 }, ..greedy(40) };
        let shifted = generate(&model, "0123456789", &options);
        assert_eq!((shifted.finish, shifted.tokens.len()), (FinishReason::MaxTokens, 40), "{name}");
        assert_eq!(shifted.tokens[..7], stopped.tokens[..]);
        // After the shift, the first 4 tokens and the newer half of the other 12 are what the model sees.
        let all: Vec<u32> = shifted.prompt_tokens.iter().chain(&shifted.tokens).copied().collect();
        let seen: Vec<u32> = all[..4].iter().chain(&all[10..17]).copied().collect();
        assert_eq!(highest(model.logits(&seen).unwrap().last().unwrap()), all[17], "{name}");
        assert!(shifted.timings.shifts > 1, "{name}");
    }
}

#[test]
fn sequences_side_by_side_do_not_see_each_other() {
    for name in ["llama", "gemma3"] {
        let model = open(name, 64);
        let texts = [&[10u32, 20, 30, 40][..], &[50, 60], &[70, 80, 90, 100, 110, 120]];
        let mut sequences = model.sequences(3).unwrap();
        // Rows of all sequences in one step, dealt like cards.
        let mut rows = Vec::new();
        for at in 0..6 {
            for (slot, text) in texts.iter().enumerate() {
                let row = |token: &u32| Row { slot, token: *token, logits: at + 1 == text.len() };
                rows.extend(text.get(at).map(row));
            }
        }
        let together = sequences.step(&rows).unwrap();
        // In the order of the rows: the second text ends first.
        for (found, text) in together.iter().zip([texts[1], texts[0], texts[2]]) {
            let alone = model.logits(text).unwrap();
            assert_eq!(found, alone.last().unwrap(), "{name}");
        }
        sequences.copy_slot(2, 0).unwrap();
        let next = [Row { slot: 0, token: 7, logits: true }, Row { slot: 2, token: 7, logits: true }];
        let logits = sequences.step(&next).unwrap();
        assert_eq!(logits[0], logits[1], "{name}");
        sequences.truncate(0, 6).unwrap();
        let snapshot = sequences.save_slot(0).unwrap();
        sequences.restore_slot(1, &snapshot).unwrap();
        assert_eq!(sequences.step(&[Row { slot: 1, token: 7, logits: true }]).unwrap()[0], logits[1], "{name}");
    }
}

#[test]
fn a_step_that_fails_leaves_the_sequences_as_they_were() {
    let model = open("llama", 8);
    let mut sequences = model.sequences(2).unwrap();
    let row = |slot, token| Row { slot, token, logits: false };
    sequences.step(&[row(0, 1), row(0, 2)]).unwrap();
    assert!(sequences.step(&[row(0, 3); 7]).is_err());
    assert!(sequences.step(&[row(0, 3), row(2, 3)]).is_err());
    assert!(sequences.step(&[row(0, 3), row(1, 300)]).is_err());
    assert_eq!((sequences.len(0), sequences.len(1)), (Ok(2), Ok(0)));
    assert!(model.sequences(0).is_err());
}

#[test]
fn long_texts_are_evaluated_in_several_steps_with_the_same_result() {
    let model = open("llama", 1024);
    let tokens: Vec<u32> = (0..600).map(|i| i * 7 % 256).collect();
    let all = model.logits(&tokens).unwrap();
    assert_eq!(all.len(), 600);
    let generation = model.generate_tokens(&tokens, &greedy(1), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.tokens, [highest(&all[599])]);
}

#[test]
fn a_ring_of_a_sliding_window_gives_what_a_plain_state_gives() {
    let tokens: Vec<u32> = (0..518).map(|i| i * 11 % 256).collect();
    // A context of 520 is not longer than the ring, and gets plain states; 521 gets rings.
    let (plain, ring) = (open("gemma3", 520), open("gemma3", 521));
    let windows = |model: &Llama| model.runtime().graph().states().iter().filter(|s| s.window.is_some()).count();
    assert_eq!((windows(&plain), windows(&ring)), (0, 12));
    assert_eq!(plain.logits(&tokens).unwrap().last(), ring.logits(&tokens).unwrap().last());
}

#[test]
fn smaller_cache_types_stay_near() {
    let spec = tiny::spec("llama-heads");
    let tokens = tiny::tokens(&spec);
    let logits = |kv_dtype| open_with("llama-heads", 64, kv_dtype).logits(&tokens).unwrap().concat();
    let exact = logits(KvDType::F32);
    let rounded = logits(KvDType::F16);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = exact.iter().zip(&rounded).map(|(a, b)| square(a - b)).sum();
    let nmse = error / exact.iter().map(|x| square(*x)).sum::<f64>();
    assert!(nmse > 0.0 && nmse < 1e-5, "{nmse:e}");
}

#[test]
fn perplexity_is_that_of_the_second_half_of_each_chunk() {
    let model = open("llama", 64);
    let text = "hello, this is a text that is long enough for chunks of sixteen tokens";
    let tokens = model.tokenize(text, models::tokenizer::EncodeOptions { add_special: true, parse_special: false });
    let options = PerplexityOptions { context: 16, chunks: Some(3), ..PerplexityOptions::default() };
    let mut told = Vec::new();
    let found = model
        .perplexity(text, &options, &mut |done, all, running| {
            told.push((done, all, running));
            ControlFlow::Continue(())
        })
        .unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for chunk in tokens.chunks_exact(16).take(3) {
        let logits = model.logits(chunk).unwrap();
        for position in 8..15 {
            let total: f64 = logits[position].iter().map(|logit| f64::from(*logit).exp()).sum();
            sum += total.ln() - f64::from(logits[position][chunk[position + 1] as usize]);
            count += 1;
        }
    }
    let expected = (sum / f64::from(count)).exp();
    assert!((found.perplexity / expected - 1.0).abs() < 1e-5, "{} {expected}", found.perplexity);
    assert_eq!((found.chunks, found.tokens_scored, found.tokens), (3, 21, tokens.len()));
    assert_eq!(told.len(), 3);
    assert_eq!(told[2], (3, 3, found.perplexity));
    let error = model.perplexity("short", &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.to_string(), "with a context of 16 the text needs at least 32 tokens, it has 5");
    let large = PerplexityOptions { context: 65, ..PerplexityOptions::default() };
    assert!(model.perplexity(text, &large, &mut |_, _, _| ControlFlow::Continue(())).is_err());
}

#[test]
fn a_conversation_evaluates_only_what_is_new() {
    for name in ["llama", "gemma3"] {
        let model = open(name, 512);
        let mut chat = model.chat(ChatOptions { system: Some("Be brief.".into()), ..ChatOptions::default() }).unwrap();
        let options = GenerateOptions { ignore_end: false, ..greedy(6) };
        let mut turn = |text: &str| chat.send(text, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        let first = turn("one");
        assert_eq!(first.timings.prompt_evaluated, first.prompt_tokens.len());
        let second = turn("two");
        assert!(second.prompt_tokens.len() > first.prompt_tokens.len() + 6, "{name}");
        let shared = first.prompt_tokens.len();
        assert_eq!(second.prompt_tokens[..shared], first.prompt_tokens[..]);
        assert!(second.timings.prompt_evaluated <= second.prompt_tokens.len() - shared, "{name}");
        // What is kept changes nothing.
        let afresh =
            model.generate_tokens(&second.prompt_tokens, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(afresh.tokens, second.tokens, "{name}");
        assert_eq!(chat.messages().len(), 5);
        chat.clear();
        assert_eq!(chat.messages().len(), 1);
    }
}

#[test]
fn a_conversation_that_outgrows_the_context_fails_or_forgets_its_oldest_turns() {
    let model = open("llama", 128);
    let turns = |context_full| {
        let mut chat = model.chat(ChatOptions { system: Some("Be brief.".into()), ..ChatOptions::default() }).unwrap();
        let options = GenerateOptions { context_full, ..greedy(4) };
        for turn in 0..6 {
            if let Err(error) = chat.send("another question", &options, &mut |_| ControlFlow::Continue(())) {
                return (turn, chat.messages().len(), Some(error.to_string()));
            }
        }
        (6, chat.messages().len(), None)
    };
    let (turn, messages, error) = turns(ContextFull::Stop);
    assert!((1..6).contains(&turn));
    assert_eq!(messages, 1 + 2 * turn, "the question that failed is not part of the conversation");
    assert!(error.unwrap().contains("a context of 128 has room for 127"));
    assert_eq!(turns(ContextFull::Shift { keep: 0 }), (6, 13, None));
}

#[test]
fn loading_tells_its_progress_and_can_be_cancelled() {
    let backends: [Arc<dyn Backend>; 1] = [Arc::new(ReferenceBackend::default())];
    let gguf = || tiny::open(&tiny::spec("llama"));
    let options = LlamaOptions::default();
    let mut last = (0, 0);
    Llama::from_gguf(gguf(), &backends, &options, &mut |done, all| {
        last = (done, all);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(last.0 == last.1 && last.1 > 0);
    let cancelled = Llama::from_gguf(gguf(), &backends, &options, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(Error::Cancelled)));
    let options = LlamaOptions { context: Some(0), ..options };
    let error = Llama::from_gguf(gguf(), &backends, &options, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.to_string(), "option context: 0 positions cannot be held");
}

#[test]
fn an_inspection_tells_tensors_types_and_memory() {
    let gguf = tiny::open(&tiny::spec("gemma3"));
    let inspection = models::inspect::inspect(&gguf, KvDType::F16);
    assert_eq!(inspection.architecture.as_deref(), Some("gemma3"));
    assert_eq!((inspection.unsupported.as_deref(), inspection.types.len()), (None, 1));
    assert_eq!(inspection.tensor_bytes, 4 * inspection.parameters);
    let contexts: Vec<usize> = inspection.memory.iter().map(|memory| memory.context).collect();
    assert_eq!(contexts, [512, 1024]);
    // K and V of 2 heads of 16 f16: 7 layers of 512 positions; 1 of 1024 and 6 rings of 8 + 512.
    let row = 2 * 2 * 16 * 2;
    let states: Vec<u64> = inspection.memory.iter().map(|memory| memory.states).collect();
    assert_eq!(states, [7 * 512 * row, (1024 + 6 * 520) * row]);
    // Besides the file's tensors the graph has a few constants.
    let constants = |weights: u64| weights.checked_sub(inspection.tensor_bytes);
    assert!(inspection.memory.iter().all(|memory| constants(memory.weights).is_some_and(|bytes| bytes < 64)));
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["tensors"][0]["type"], "F32");
}
