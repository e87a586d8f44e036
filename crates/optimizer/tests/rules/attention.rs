//! Attention as exporters write it.

use core_tensor::op::Unary;
use core_tensor::{DType, Tensor, ValueId};

use crate::graphs::{Build, dims, operators, optimized, sym};

const HEADS: usize = 2;
const DIM: usize = 4;

/// `[batch, tokens, heads * dim]` as `[batch, heads, tokens, dim]`.
fn split(b: &mut Build, x: ValueId, heads: usize) -> ValueId {
    let x = b.reshape(x, &[sym("batch"), sym("tokens"), heads.into(), DIM.into()]);
    b.transpose(x, &[0, 2, 1, 3])
}

fn merge(b: &mut Build, x: ValueId) -> ValueId {
    let x = b.transpose(x, &[0, 2, 1, 3]);
    b.reshape(x, &[sym("batch"), sym("tokens"), (HEADS * DIM).into()])
}

fn qkv(b: &mut Build, kv_heads: usize) -> [ValueId; 3] {
    [HEADS, kv_heads, kv_heads].map(|heads| b.input(&[sym("batch"), sym("tokens"), (heads * DIM).into()]))
}

#[test]
fn attention_of_bert_becomes_one_node_between_reshapes() {
    let mut b = Build::new();
    let [q, k, v] = qkv(&mut b, HEADS);
    let mask = b.input(&[sym("batch"), 1.into(), 1.into(), sym("tokens")]);
    let (q, v) = (split(&mut b, q, HEADS), split(&mut b, v, HEADS));
    let k = b.reshape(k, &[sym("batch"), sym("tokens"), HEADS.into(), DIM.into()]);
    let k = b.transpose(k, &[0, 2, 3, 1]);
    let scores = b.matmul(q, k);
    let root = b.number(2.0);
    let scores = b.div(scores, root);
    let scores = b.add(scores, mask);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    let y = merge(&mut b, y);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn attention_with_scaled_operands_and_a_condition_is_found() {
    // torch.nn.functional.scaled_dot_product_attention as the newer exporter writes it.
    let mut b = Build::new();
    let [q, k, v] = qkv(&mut b, HEADS);
    let condition = b.input_of(DType::Bool, &[sym("batch"), 1.into(), 1.into(), sym("tokens")]);
    let [q, k, v] = [q, k, v].map(|x| split(&mut b, x, HEADS));
    let flat = b.reshape(k, &[sym("batch").mul(HEADS.into()), sym("tokens"), DIM.into()]);
    let flat = b.transpose(flat, &[0, 2, 1]);
    let k = b.reshape(flat, &[sym("batch"), HEADS.into(), DIM.into(), sym("tokens")]);
    let root = b.number(std::f32::consts::FRAC_1_SQRT_2);
    let (q, k) = (b.mul(q, root), b.mul(k, root));
    let scores = b.matmul(q, k);
    let (zero, least) = (b.number(0.0), b.number(f32::NEG_INFINITY));
    let mask = b.choose(condition, zero, least);
    let scores = b.add(scores, mask);
    let p = b.softmax(scores);
    let nan = b.unary(Unary::IsNan, p);
    let p = b.choose(nan, zero, p);
    let y = b.matmul(p, v);
    let y = merge(&mut b, y);
    assert_eq!(operators(b.output(y)), "Reshape Reshape Reshape Where TensorAttention Reshape");
}

#[test]
fn scores_chosen_by_a_condition_get_an_added_mask() {
    let mut b = Build::new();
    let [q, k, v] = qkv(&mut b, HEADS);
    let condition = b.input_of(DType::Bool, &[1.into(), 1.into(), sym("tokens"), sym("tokens")]);
    let [q, k, v] = [q, k, v].map(|x| split(&mut b, x, HEADS));
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let scores = b.matmul(q, k);
    let least = b.number(-3.402_823_5e38);
    let scores = b.choose(condition, scores, least);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    let y = merge(&mut b, y);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn keys_repeated_for_grouped_queries_are_read_once() {
    let mut b = Build::new();
    let [q, k, v] = qkv(&mut b, 1);
    let q = split(&mut b, q, HEADS);
    let repeat = |b: &mut Build, x: ValueId| {
        let x = split(b, x, 1);
        let x = b.reshape(x, &[sym("batch"), 1.into(), 1.into(), sym("tokens"), DIM.into()]);
        let x = b.expand(x, &[sym("batch"), 1.into(), HEADS.into(), sym("tokens"), DIM.into()]);
        b.reshape(x, &[sym("batch"), HEADS.into(), sym("tokens"), DIM.into()])
    };
    let (k, v) = (repeat(&mut b, k), repeat(&mut b, v));
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let scores = b.matmul(q, k);
    let scale = b.number(0.5);
    let scores = b.mul(scores, scale);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    let y = merge(&mut b, y);
    let (text, report) = optimized(b.output(y));
    assert_eq!(report.rule("attention").unwrap().fired, 1);
    let after = text.split_once("---- ").unwrap().1;
    assert!(!after.contains("Expand") && !after.contains("Transpose"), "{after}");
}

#[test]
fn soft_caps_go_into_the_operator() {
    let mut b = Build::new();
    let [q, k, v] = qkv(&mut b, HEADS);
    let [q, k, v] = [q, k, v].map(|x| split(&mut b, x, HEADS));
    let k = b.transpose(k, &[0, 1, 3, 2]);
    let scores = b.matmul(q, k);
    let (scale, cap) = (b.number(0.5), b.number(3.0));
    let scores = b.mul(scores, scale);
    let scores = b.div(scores, cap);
    let scores = b.unary(Unary::Tanh, scores);
    let scores = b.mul(scores, cap);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    let y = merge(&mut b, y);
    let (text, _) = optimized(b.output(y));
    assert!(text.contains("{scale=0.5, causal=false, softcap=3}"), "{text}");
}

#[test]
fn heads_within_the_batch_are_heads_of_their_own() {
    let mut b = Build::new();
    let [q, k, v] = [0; 3].map(|_| b.input(&[sym("batch"), sym("tokens"), DIM.into()]));
    let mask = b.input(&[1.into(), sym("tokens"), sym("tokens")]);
    let k = b.transpose(k, &[0, 2, 1]);
    let scores = b.matmul(q, k);
    let scores = b.add(scores, mask);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    assert_eq!(operators(b.output(y)), "Reshape Reshape Reshape Reshape TensorAttention Reshape");
}

#[test]
fn probabilities_that_are_an_output_keep_attention_apart() {
    let mut b = Build::new();
    let [q, k, v] = [0; 3].map(|_| b.input(&[sym("batch"), sym("tokens"), DIM.into()]));
    let k = b.transpose(k, &[0, 2, 1]);
    let scores = b.matmul(q, k);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    b.graph.output(p);
    let (_, report) = optimized(b.output(y));
    let rule = report.rule("attention").unwrap();
    assert_eq!(
        (rule.fired, rule.near_misses[0].reason.as_str()),
        (0, "the result of Softmax \"Softmax\" is used elsewhere, too")
    );
}

#[test]
fn a_mask_before_the_scale_is_told() {
    let mut b = Build::new();
    let [q, k, v] = [0; 3].map(|_| b.input(&[sym("batch"), sym("tokens"), DIM.into()]));
    let mask = b.input(&[1.into(), sym("tokens"), sym("tokens")]);
    let k = b.transpose(k, &[0, 2, 1]);
    let scores = b.matmul(q, k);
    let scores = b.add(scores, mask);
    let half = b.number(0.5);
    let scores = b.mul(scores, half);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    let (_, report) = optimized(b.output(y));
    let reason = &report.rule("attention").unwrap().near_misses[0].reason;
    assert_eq!(reason, "a mask is applied before the scores are scaled, or there are two");
}

#[test]
fn rotary_embedding_is_found_and_said_to_run_as_written() {
    let mut b = Build::new();
    let x = b.input(&dims(&[1, 2, 3, 4]));
    let (cos, sin) = (b.input(&dims(&[1, 1, 3, 4])), b.input(&dims(&[1, 1, 3, 4])));
    let (low, high) = (b.slice(x, 3, 0, 2), b.slice(x, 3, 2, 4));
    let minus = b.unary(Unary::Neg, high);
    let rotated = b.concat(3, &[minus, low]);
    let (a, c) = (b.mul(x, cos), b.mul(rotated, sin));
    let y = b.add(a, c);
    let (_, report) = optimized(b.output(y));
    assert_eq!(report.rule("rotary-embedding").unwrap().near_miss_count, 1);
}

/// In such a row every score is chosen away, and the weights are all alike: adding -10000 would leave the scores' differences.
#[test]
fn a_row_that_sees_nothing_by_choice_attends_to_all_keys_alike() {
    let mut b = Build::new();
    let (q, k, v) =
        (b.input(&[1.into(), 2.into(), 3.into(), 8.into()]), b.weight(&[1, 2, 8, 3]), b.weight(&[1, 2, 3, 8]));
    let scores = b.matmul(q, k);
    let seen = b.tensor(Tensor::from_bytes(DType::Bool, &[3, 3], &[0, 0, 0, 1, 0, 1, 1, 1, 1]).unwrap());
    let least = b.number(-10_000.0);
    let scores = b.choose(seen, scores, least);
    let p = b.softmax(scores);
    let y = b.matmul(p, v);
    // (`optimized` compares the results of both graphs.)
    let text = optimized(b.output(y)).0;
    assert!(text.contains("TensorAttention"), "{text}");
}
