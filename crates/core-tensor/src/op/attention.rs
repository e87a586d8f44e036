//! Attention.

use super::elementwise::broadcast_index;
use super::{Evaluation, Inference, OpError, Operator, filled, same, show};
use crate::{DType, Dim, ValueType};

/// Causal scaled dot-product attention over two states, with grouped-query heads (ONNX Attention, ggml `flash_attn_ext`).
///
/// Inputs: `q` f32 `[tokens, heads, head_dim]`; the tokens of the states K and V (rows `[n_kv, head_dim]`), consumed after this
/// step's rows were written; positions i32 `[tokens]`; slots i32 `[tokens]`. Output: f32 `[tokens, heads, head_dim of V]`.
///
/// A row at position `p` of slot `s` attends to positions `0..=p` of that slot, or to the last `window` of them.
/// Query head `h` reads key head `h / (heads / n_kv)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// What dot products are multiplied with, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// If given, scores become `softcap * tanh(score / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// If given, only the last `window` positions are seen (sliding-window attention).
    pub window: Option<usize>,
}

impl Attention {
    /// The first position that a row at `position` sees.
    #[must_use]
    pub fn first_position(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl Operator for Attention {
    fn name(&self) -> &'static str {
        "Attention"
    }

    fn attributes(&self) -> String {
        let mut text = format!(" {{scale={}", self.scale);
        if let Some(softcap) = self.softcap {
            text += &format!(", softcap={softcap}");
        }
        if let Some(window) = self.window {
            text += &format!(", window={window}");
        }
        text + "}"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(5..=5, "5")?;
        let q = cx.f32(0)?;
        let (_, k) = cx.token(1)?;
        let (_, v) = cx.token(2)?;
        let [tokens, Dim::Num(heads), Dim::Num(head_dim)] = q else {
            return Err(OpError::Shape(format!("q must be [tokens, heads, head_dim], it is {}", show(q))));
        };
        for input in [3, 4] {
            let rows = cx.i32_vector(input)?;
            if rows != tokens {
                return Err(OpError::Shape(format!("{rows} positions or slots for q {}", show(q))));
            }
        }
        let ([k_heads, k_dim], [v_heads, v_dim]) = (&k.row[..], &v.row[..]) else {
            return Err(OpError::Shape("the rows of K and V must be [n_kv, head_dim]".into()));
        };
        if k_heads != v_heads || *k_heads == 0 || *heads == 0 || !heads.is_multiple_of(*k_heads) || k_dim != head_dim {
            return Err(OpError::Shape(format!(
                "q {} does not fit K rows [{k_heads}, {k_dim}] and V rows [{v_heads}, {v_dim}]",
                show(q)
            )));
        }
        if k.capacity != v.capacity || k.window != v.window {
            return Err(OpError::Shape(format!("K holds {} rows, V {}", k.capacity, v.capacity)));
        }
        if k.window.is_some_and(|kept| self.window.is_none_or(|seen| seen > kept)) {
            return Err(OpError::Attribute {
                name: "window",
                reason: format!("{:?} looks further back than the state keeps rows ({:?})", self.window, k.window),
            });
        }
        if self.window == Some(0) {
            return Err(OpError::Attribute { name: "window", reason: "it is 0".into() });
        }
        Ok(vec![ValueType::tensor(DType::F32, &[tokens.clone(), Dim::Num(*heads), Dim::Num(*v_dim)])])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let q = cx.f32(0)?;
        let (k_state, v_state) = (cx.token(1)?, cx.token(2)?);
        let (positions, slots) = (cx.i32(3)?, cx.i32(4)?);
        let shape = cx.tensor(0)?.shape().to_vec();
        let (heads, head_dim) = (shape[1], shape[2]);
        let k_heads = cx.states.row_shape(k_state)[0];
        let v_dim = cx.states.row_shape(v_state)[1];
        let mut y = vec![0.0f32; positions.len() * heads * v_dim];
        for token in 0..positions.len() {
            let (slot, last) = cx.states.place(k_state, slots[token], positions[token])?;
            let first = self.first_position(last);
            for head in 0..heads {
                let kv_head = head / (heads / k_heads);
                let query = &q[(token * heads + head) * head_dim..][..head_dim];
                let mut scores = Vec::with_capacity(last + 1 - first);
                for position in first..=last {
                    let key = cx.states.read(k_state, slot, position, kv_head)?;
                    let dot: f32 = query.iter().zip(&key).map(|(a, b)| a * b).sum();
                    let score = dot * self.scale;
                    scores.push(self.softcap.map_or(score, |cap| cap * (score / cap).tanh()));
                }
                let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let sum: f32 = scores.iter().sum();
                let out = &mut y[(token * heads + head) * v_dim..][..v_dim];
                for (position, score) in (first..=last).zip(&scores) {
                    let value = cx.states.read(v_state, slot, position, kv_head)?;
                    out.iter_mut().zip(&value).for_each(|(o, v)| *o += score / sum * v);
                }
            }
        }
        cx.put_f32(0, &y)
    }
}

/// Scaled dot-product attention over tensors (encoders, cross-attention; ONNX Attention), grouped-query heads.
///
/// Inputs: q f32 `[batch, tokens, heads, head_dim]`; k f32 `[batch, n, n_kv, head_dim]`; v f32 `[batch, n, n_kv, v_dim]`; optionally a mask that
/// broadcasts to `[batch, heads, tokens, n]`, f32 (added to the scaled scores) or bool (false: not seen).
/// Output: f32 `[batch, tokens, heads, v_dim]`. A row that sees nothing (all scores -∞) gives zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorAttention {
    /// What dot products are multiplied with, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// Whether query `i` sees keys `0..=i + (n - tokens)` only (the last query sees all).
    pub causal: bool,
    /// If given, scores become `softcap * tanh(score / softcap)` before the mask.
    pub softcap: Option<f32>,
}

impl Operator for TensorAttention {
    fn name(&self) -> &'static str {
        "TensorAttention"
    }

    fn attributes(&self) -> String {
        let mut text = format!(" {{scale={}, causal={}", self.scale, self.causal);
        if let Some(softcap) = self.softcap {
            text += &format!(", softcap={softcap}");
        }
        text + "}"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=4, "3 or 4")?;
        let (q, k, v) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?);
        let ([batch, tokens, heads, head_dim], [k_batch, n, n_kv, k_dim], [v_batch, v_n, v_heads, v_dim]) = (q, k, v)
        else {
            let reason = format!("q {}, k {} and v {} must have 4 extents", show(q), show(k), show(v));
            return Err(OpError::Shape(reason));
        };
        same(head_dim, k_dim, "head_dim of q and k")?;
        let n = same(n, v_n, "rows of k and v")?;
        let n_kv = same(n_kv, v_heads, "heads of k and v")?;
        let batch = same(batch, same(k_batch, v_batch, "batch of k and v")?, "batch of q and k")?;
        if let Some(n_kv) = n_kv.as_num()
            && (n_kv == 0 || heads.as_num().is_some_and(|heads| !heads.is_multiple_of(n_kv)))
        {
            return Err(OpError::Shape(format!("{heads} heads of q do not share {n_kv} heads of k")));
        }
        if cx.has(3) {
            let mask = cx.typed(3, &[DType::F32, DType::Bool], "f32 or bool")?;
            let full = [batch, heads, tokens, n];
            let fits = mask.len() <= 4
                && mask.iter().rev().zip(full.iter().rev()).all(|(a, b)| *a == Dim::Num(1) || !a.differs(b));
            if !fits {
                let reason = format!("the mask {} does not fit [{batch}, {heads}, {tokens}, {n}]", show(mask));
                return Err(OpError::Shape(reason));
            }
        }
        Ok(vec![ValueType::tensor(DType::F32, &[batch.clone(), tokens.clone(), heads.clone(), v_dim.clone()])])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (q, k, v) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?);
        let (tokens, heads, v_dim) = (shape[1], shape[2], shape[3]);
        let k_shape = cx.tensor(1)?.shape().to_vec();
        let (n, n_kv, head_dim) = (k_shape[1], k_shape[2], k_shape[3]);
        let mask = if cx.has(3) { Some(cx.tensor(3)?.clone()) } else { None };
        let added: Vec<f32> = match &mask {
            None => Vec::new(),
            Some(mask) if mask.dtype() == DType::Bool => {
                mask.bytes().iter().map(|seen| if *seen != 0 { 0.0 } else { f32::NEG_INFINITY }).collect()
            }
            Some(mask) => mask.to_f32()?,
        };
        let full = [shape[0], heads, tokens, n];
        let mut y = filled(&shape, 0.0f32)?;
        for (i, out) in y.chunks_mut(v_dim.max(1)).enumerate() {
            let (image, token, head) = (i / heads / tokens, i / heads % tokens, i % heads);
            let kv_row = |row: usize| (image * n + row) * n_kv + head / (heads / n_kv);
            let query = &q[i * head_dim..][..head_dim];
            // The last query sees all keys; with more queries than keys the first ones see none.
            let seen = if self.causal { (token + 1 + n).saturating_sub(tokens).min(n) } else { n };
            let mut scores = Vec::with_capacity(seen);
            for row in 0..seen {
                let key = &k[kv_row(row) * head_dim..][..head_dim];
                let mut score = query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>() * self.scale;
                if let Some(cap) = self.softcap {
                    score = cap * (score / cap).tanh();
                }
                if let Some(mask) = &mask {
                    let place = ((image * heads + head) * tokens + token) * n + row;
                    score += added[broadcast_index(place, &full, mask.shape())];
                }
                scores.push(score);
            }
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            if max == f32::NEG_INFINITY {
                continue;
            }
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let sum: f32 = scores.iter().sum();
            for (row, score) in scores.iter().enumerate() {
                let value = &v[kv_row(row) * v_dim..][..v_dim];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += score / sum * v);
            }
        }
        cx.put_f32(0, &y)
    }
}
