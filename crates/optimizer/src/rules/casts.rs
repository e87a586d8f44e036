//! Conversions of the element type.
//!
//! A conversion that loses nothing may be left out before another one. A round trip through half precision (`Cast f16`, `Cast f32`) does lose: files
//! that ask for it get it, unless [`OptimizeOptions::drop_half_rounding`](crate::OptimizeOptions::drop_half_rounding) says that more precision is welcome.

use core_tensor::DType;
use core_tensor::op::{Cast, Op};

use crate::rule::{Pattern, Reject, Rule};

fn cast(x: Pattern) -> Pattern {
    Pattern::node("Cast", |op| matches!(op, Op::Cast(_)), [x])
}

pub(crate) fn rules() -> Vec<Rule> {
    let chain = cast(cast(Pattern::value("x")).shared().named("between"));
    vec![Rule::new("cast-chain", "a conversion that loses nothing, before another one, is left out", chain, |r| {
        let (x, between) = (r.found("x")?, r.found("between")?);
        let (from, through) = (r.ty(x)?.0, r.ty(between)?.0);
        let Op::Cast(Cast { to }) = r.root().op else { return Err(Reject::nothing_to_do()) };
        if !lossless(from, through) {
            return Err(Reject::because(format!("{from} to {through} loses bits, which {to} then lacks")));
        }
        // An integer becomes another one by its bits, a float by its value.
        if through.is_float() && from.is_int() && to.is_int() && !lossless(from, to) {
            return Err(Reject::because(format!(
                "from {through} numbers beyond {to} become the last, from {from} they wrap around"
            )));
        }
        let x = r.new_value(x);
        if from == to { Ok(x) } else { r.add(Op::Cast(Cast { to }), &[x]) }
    })]
}

/// The rule that [`OptimizeOptions::drop_half_rounding`](crate::OptimizeOptions::drop_half_rounding) switches on.
pub(crate) fn half_rounding() -> Rule {
    let chain = cast(cast(Pattern::value("x")).shared().named("between"));
    Rule::new("half-rounding", "a round trip through half precision is left out", chain, |r| {
        let (x, between) = (r.found("x")?, r.found("between")?);
        let half = matches!(r.ty(between)?.0, DType::F16 | DType::BF16);
        if r.ty(x)?.0 == DType::F32 && half && matches!(r.root().op, Op::Cast(Cast { to: DType::F32 })) {
            return r.input("x");
        }
        Err(Reject::nothing_to_do())
    })
}

/// Whether every number of one dtype is one of the other's.
fn lossless(from: DType, to: DType) -> bool {
    // Bits of the magnitude, whether there is a sign, for integers.
    let integer = |dtype: DType| match dtype {
        DType::Bool => Some((1, false)),
        DType::U8 => Some((8, false)),
        DType::U16 => Some((16, false)),
        DType::U32 => Some((32, false)),
        DType::U64 => Some((64, false)),
        DType::I8 => Some((7, true)),
        DType::I16 => Some((15, true)),
        DType::I32 => Some((31, true)),
        DType::I64 => Some((63, true)),
        _ => None,
    };
    let mantissa = |dtype: DType| match dtype {
        DType::F16 => Some(11),
        DType::BF16 => Some(8),
        DType::F32 => Some(24),
        DType::F64 => Some(53),
        _ => None,
    };
    if from == to {
        return true;
    }
    match (integer(from), integer(to), mantissa(to)) {
        (_, _, _) if to == DType::Bool => false,
        (Some((bits, signed)), Some((room, sign)), _) => bits <= room && (sign || !signed),
        (Some((bits, _)), None, Some(room)) => bits <= room,
        _ => matches!((from, to), (DType::F16 | DType::BF16, DType::F32 | DType::F64) | (DType::F32, DType::F64)),
    }
}
