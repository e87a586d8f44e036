//! Products of matrices.

use core_tensor::op::{MatMul, MatMulInteger, Op, ReduceKind};
use core_tensor::{DType, Dim};

use super::reduce::reduce;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::product;

pub(super) const OPERATORS: &[Entry] = &[
    ("Det", 11, det),
    ("Einsum", 12, einsum),
    ("Gemm", 6, gemm),
    ("MatMul", 1, mat_mul),
    ("MatMulInteger", 10, mat_mul_integer),
];

/// `A·B` or `A·Bᵀ` in f32; vectors are matrices of one row or column.
pub(super) fn multiply(lower: &mut Lower<'_>, a: &Operand, b: &Operand, transpose_b: bool) -> Res<Operand> {
    let dtype = a.dtype();
    if a.rank() == 0 || b.rank() == 0 {
        return fail("a scalar is no matrix");
    }
    let (row, column) = (a.rank() == 1, b.rank() == 1);
    let a = lower.f32(a)?;
    let b = if b.dtype().is_float() && b.dtype() != DType::F64 { b.clone() } else { lower.f32(b)? };
    let a = if row { lower.unsqueeze(&a, &[0])? } else { a };
    let b = if column { lower.unsqueeze(&b, &[1])? } else { b };
    let op = Op::MatMul(MatMul { transpose_b });
    // Weights of two extents stay in the dtype that they are stored in.
    let weights: &[usize] = if b.rank() == 2 { &[1] } else { &[] };
    let Some(mut y) = lower.ops_with(op, &[Some(&a), Some(&b)], weights)?.pop() else { return fail("no result") };
    if column {
        y = lower.squeeze(&y, &[y.rank() - 1])?;
    }
    if row {
        y = lower.squeeze(&y, &[y.rank() - if column { 1 } else { 2 }])?;
    }
    let y = lower.declare(&y, DType::F32)?;
    lower.back(y, dtype)
}

fn mat_mul<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b) = (call.input(0)?.clone(), call.input(1)?.clone());
    one(multiply(lower, &a, &b, false)?)
}

fn gemm<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b, c) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    if a.rank() != 2 || b.rank() != 2 {
        return fail("its inputs are no matrices");
    }
    let a = if call.attributes.flag("transA", false)? { lower.transpose(&a, &[1, 0])? } else { a };
    let mut y = multiply(lower, &a, &b, call.attributes.flag("transB", false)?)?;
    let (alpha, beta) = (call.attributes.float_or("alpha", 1.0)?, call.attributes.float_or("beta", 1.0)?);
    if alpha != 1.0 {
        let alpha = lower.scalar(y.dtype(), f64::from(alpha))?;
        y = lower.mul(&y, &alpha)?;
    }
    if let Some(mut c) = c
        && beta != 0.0
    {
        if beta != 1.0 {
            let beta = lower.scalar(c.dtype(), f64::from(beta))?;
            c = lower.mul(&c, &beta)?;
        }
        y = lower.add(&y, &c)?;
    }
    one(y)
}

fn mat_mul_integer<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b) = (call.input(0)?.clone(), call.input(1)?.clone());
    let (a_zero, b_zero) = (call.optional(2)?.cloned(), call.optional(3)?.cloned());
    one(multiply_integers(lower, &a, &b, a_zero.as_ref(), b_zero.as_ref())?)
}

/// The exact product of integer matrices, i32.
pub(super) fn multiply_integers(
    lower: &mut Lower<'_>,
    a: &Operand,
    b: &Operand,
    a_zero: Option<&Operand>,
    b_zero: Option<&Operand>,
) -> Res<Operand> {
    let (row, column) = (a.rank() == 1, b.rank() == 1);
    let a = if row { lower.unsqueeze(a, &[0])? } else { a.clone() };
    let b = if column { lower.unsqueeze(b, &[1])? } else { b.clone() };
    let inputs: &[Option<&Operand>] = match (a_zero, b_zero) {
        (None, None) => &[Some(&a), Some(&b)],
        (zero, None) => &[Some(&a), Some(&b), zero],
        (zero, other) => &[Some(&a), Some(&b), zero, other],
    };
    let Some(mut y) = lower.ops(Op::MatMulInteger(MatMulInteger), inputs)?.pop() else { return fail("no result") };
    if column {
        y = lower.squeeze(&y, &[y.rank() - 1])?;
    }
    if row {
        y = lower.squeeze(&y, &[y.rank() - if column { 1 } else { 2 }])?;
    }
    Ok(y)
}

/// An operand of an Einsum with the label of each extent.
#[derive(Clone)]
struct Labelled {
    x: Operand,
    labels: Vec<char>,
}

/// Stands for the extents of an ellipsis.
fn ellipsis(index: usize) -> char {
    char::from_u32(0xE000 + index as u32).unwrap_or('.')
}

fn labels(term: &str, rank: Option<usize>) -> Res<Vec<char>> {
    let dots = term.find("...");
    let letters = |text: &str| -> Res<Vec<char>> {
        let all: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        match all.iter().find(|c| !c.is_ascii_alphabetic()) {
            Some(c) => fail(format!("'{c}' is no label of an extent")),
            None => Ok(all),
        }
    };
    let Some(at) = dots else { return letters(term) };
    let (before, after) = (letters(&term[..at])?, letters(&term[at + 3..])?);
    let Some(rank) = rank else { return fail("an ellipsis without extents") };
    let Some(count) = rank.checked_sub(before.len() + after.len()) else {
        return fail(format!("'{term}' has more labels than {rank} extents"));
    };
    // Ellipses align at their end, as broadcasting does.
    let dots = (0..count).rev().map(ellipsis);
    Ok(before.into_iter().chain(dots).chain(after).collect())
}

fn einsum<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let equation = call.attributes.text("equation")?.ok_or_else(|| Fail::from("attribute equation is missing"))?;
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation, None),
    };
    let inputs = call.all()?;
    let terms: Vec<&str> = left.split(',').map(str::trim).collect();
    if terms.len() != inputs.len() || inputs.is_empty() {
        return fail(format!("'{equation}' is no equation of {} operands", inputs.len()));
    }
    let mut operands = Vec::new();
    let mut dots = 0;
    for (term, x) in terms.iter().zip(&inputs) {
        let labels = labels(term, Some(x.rank()))?;
        if labels.len() != x.rank() {
            return fail(format!("'{term}' does not label {} extents", x.rank()));
        }
        dots = dots.max(labels.iter().filter(|c| **c >= ellipsis(0)).count());
        operands.push(diagonal(lower, Labelled { x: x.clone(), labels })?);
    }
    let wanted = match right {
        Some(right) => {
            let letters = right.chars().filter(|c| c.is_ascii_alphabetic()).count();
            labels(right.trim(), Some(letters + dots))?
        }
        None => {
            // Labels that occur once, in order, after the ellipsis.
            let all: Vec<char> = operands.iter().flat_map(|o| o.labels.clone()).collect();
            let text: Vec<char> = left.chars().filter(char::is_ascii_alphabetic).collect();
            let mut once: Vec<char> =
                text.iter().copied().filter(|c| text.iter().filter(|o| *o == c).count() == 1).collect();
            once.sort_unstable();
            let dots = (0..dots).rev().map(ellipsis).filter(|c| all.contains(c));
            dots.chain(once).collect()
        }
    };
    let mut rest = operands.into_iter();
    let Some(mut result) = rest.next() else { return fail("it has no inputs") };
    let rest: Vec<Labelled> = rest.collect();
    for (i, next) in rest.iter().enumerate() {
        let later =
            |label: &char| wanted.contains(label) || rest[i + 1..].iter().any(|operand| operand.labels.contains(label));
        result = contract(lower, &result, next, &later)?;
    }
    let result = sum_out(lower, &result, &|label| wanted.contains(label))?;
    let mut perm = Vec::new();
    for label in &wanted {
        match result.labels.iter().position(|other| other == label) {
            Some(at) => perm.push(at),
            None => return fail(format!("'{label}' labels no extent of an operand")),
        }
    }
    let y = lower.transpose(&result.x, &perm)?;
    one(lower.back(y, inputs[0].dtype())?)
}

/// Extents of the same label within one operand become one, by their diagonal.
fn diagonal(lower: &mut Lower<'_>, operand: Labelled) -> Res<Labelled> {
    let Labelled { mut x, mut labels } = operand;
    while let Some((a, b)) =
        (0..labels.len()).flat_map(|b| (0..b).map(move |a| (a, b))).find(|(a, b)| labels[*a] == labels[*b])
    {
        let (lead, _) = lower.axis_last(&x, b)?;
        let (both, _) = lower.axis_last(&lead, a)?;
        // [..., n, n]: the places i·n + i of n·n elements.
        let n = x.shape()[b].clone();
        let rank = both.rank();
        let shape: Vec<Dim> =
            both.shape()[..rank - 2].iter().cloned().chain([product(&[n.clone(), n.clone()])]).collect();
        let flat = lower.reshape(&both, &shape)?;
        let places = lower.iota(n.clone())?;
        let stride = lower.integers(DType::I64, &[], vec![crate::lower::sym_int::SymInt::of(n.add(Dim::Num(1)))])?;
        let places = lower.mul(&places, &stride)?;
        x = lower.gather(&flat, rank - 2, &places)?;
        let label = labels[b];
        labels.remove(b);
        labels.remove(a);
        labels.push(label);
    }
    Ok(Labelled { x, labels })
}

/// Sums the extents out whose labels are not needed any more.
fn sum_out(lower: &mut Lower<'_>, operand: &Labelled, needed: &dyn Fn(&char) -> bool) -> Res<Labelled> {
    let places: Vec<usize> = (0..operand.labels.len()).filter(|i| !needed(&operand.labels[*i])).collect();
    if places.is_empty() {
        return Ok(operand.clone());
    }
    let x = reduce(lower, ReduceKind::Sum, &operand.x, &places, false)?;
    Ok(Labelled { x, labels: operand.labels.iter().copied().filter(|label| needed(label)).collect() })
}

/// The product of two operands, summed over the labels that both have and nobody needs later.
fn contract(lower: &mut Lower<'_>, a: &Labelled, b: &Labelled, later: &dyn Fn(&char) -> bool) -> Res<Labelled> {
    let a = sum_out(lower, a, &|label| later(label) || b.labels.contains(label))?;
    let b = sum_out(lower, b, &|label| later(label) || a.labels.contains(label))?;
    let shared = |label: &char| a.labels.contains(label) && b.labels.contains(label);
    let batch: Vec<char> = a.labels.iter().copied().filter(|l| shared(l) && later(l)).collect();
    let inner: Vec<char> = a.labels.iter().copied().filter(|l| shared(l) && !later(l)).collect();
    let rows: Vec<char> = a.labels.iter().copied().filter(|l| !shared(l)).collect();
    let cols: Vec<char> = b.labels.iter().copied().filter(|l| !shared(l)).collect();
    let extent = |label: &char| {
        let find = |operand: &Labelled| {
            operand.labels.iter().position(|other| other == label).map(|at| operand.x.shape()[at].clone())
        };
        match (find(&a), find(&b)) {
            (Some(Dim::Num(1)), Some(other)) => other,
            (Some(dim), _) => dim,
            (None, other) => other.unwrap_or(Dim::Num(1)),
        }
    };
    let arrange = |lower: &mut Lower<'_>, operand: &Labelled, groups: [&[char]; 3]| -> Res<Operand> {
        let order: Vec<char> = groups.concat();
        let perm: Vec<usize> =
            order.iter().filter_map(|label| operand.labels.iter().position(|other| other == label)).collect();
        let x = lower.transpose(&operand.x, &perm)?;
        let wide: Vec<Dim> = order.iter().map(&extent).collect();
        let x = lower.expand(&x, &wide)?;
        let lead = groups[0].iter().map(&extent);
        let shape: Vec<Dim> =
            lead.chain(groups[1..].iter().map(|g| product(&g.iter().map(&extent).collect::<Vec<_>>()))).collect();
        lower.reshape(&x, &shape)
    };
    let left = arrange(lower, &a, [&batch, &rows, &inner])?;
    let right = arrange(lower, &b, [&batch, &cols, &inner])?;
    let y = multiply(lower, &left, &right, true)?;
    let labels: Vec<char> = batch.iter().chain(&rows).chain(&cols).copied().collect();
    let shape: Vec<Dim> = labels.iter().map(&extent).collect();
    Ok(Labelled { x: lower.reshape(&y, &shape)?, labels })
}

/// The determinant by elimination without pivots would be inexact: small matrices are expanded by minors.
fn det<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    const LARGEST: usize = 5;
    let x = call.input(0)?.clone();
    let rank = x.rank();
    let n = match x.shape() {
        [.., Dim::Num(n), Dim::Num(m)] if n == m && (1..=LARGEST).contains(n) => *n,
        _ => return fail(format!("only square matrices of up to {LARGEST} rows are supported")),
    };
    let mut cells = Vec::new();
    for i in 0..n {
        let row = lower.slice(&x, rank - 2, Dim::Num(i), Dim::Num(1))?;
        for j in 0..n {
            let cell = lower.slice(&row, rank - 1, Dim::Num(j), Dim::Num(1))?;
            cells.push(lower.squeeze(&cell, &[rank - 2, rank - 1])?);
        }
    }
    let columns: Vec<usize> = (0..n).collect();
    one(minor(lower, &cells, n, 0, &columns)?)
}

fn minor(lower: &mut Lower<'_>, cells: &[Operand], n: usize, row: usize, columns: &[usize]) -> Res<Operand> {
    let mut sum: Option<Operand> = None;
    for (i, column) in columns.iter().enumerate() {
        let cell = &cells[row * n + column];
        let rest: Vec<usize> = columns.iter().copied().filter(|other| other != column).collect();
        let term = if rest.is_empty() {
            cell.clone()
        } else {
            let inner = minor(lower, cells, n, row + 1, &rest)?;
            lower.mul(cell, &inner)?
        };
        sum = Some(match sum {
            None => term,
            Some(sum) if i % 2 == 0 => lower.add(&sum, &term)?,
            Some(sum) => lower.sub(&sum, &term)?,
        });
    }
    sum.ok_or_else(|| "an empty matrix".into())
}
