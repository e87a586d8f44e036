//! Limits of the values that filters and methods make, and of those that are written.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value, filters};

use super::invalid;

/// How many bytes or items a filter or method may make.
const LARGEST_VALUE: usize = 16 << 20;

/// How many parts of a value may be written at once, and how deep they may nest.
const MOST_PARTS: usize = 1 << 20;
const DEEPEST_PART: usize = 20_000;

/// Puts limits before the filters that make much of little.
pub(super) fn bound_filters(environment: &mut Environment<'_>) {
    let mut bound = |name: &'static str, filter: Value, size: fn(&[Value]) -> usize| {
        environment.add_filter(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            within_limit(size(&arguments))?;
            filter.call(state, &arguments)
        });
    };
    bound("replace", Value::from_function(filters::replace), replaced_size);
    bound("join", Value::from_function(filters::join), |arguments| match arguments {
        [items, joiner, ..] => joined_size(items, joiner),
        [items] => joined_size(items, &Value::from("")),
        [] => 0,
    });
    bound("indent", Value::from_function(filters::indent), |arguments| {
        let [text, ..] = arguments else { return 0 };
        let lines = text.as_str().map_or(1, |text| 1 + text.matches('\n').count());
        lines.saturating_mul(number(arguments, 1, "width"))
    });
    // Each part is a list.
    const PART: usize = 64;
    bound("batch", Value::from_function(filters::batch), |arguments| {
        number(arguments, 1, "count").saturating_mul(PART)
    });
    bound("slice", Value::from_function(filters::slice), |arguments| {
        number(arguments, 1, "count").saturating_mul(PART)
    });
    bound("format", Value::from_function(filters::format), |arguments| arguments.first().map_or(0, widths));
    for (name, filter) in
        [("string", Value::from_function(filters::string)), ("pprint", Value::from_function(filters::pprint))]
    {
        environment.add_filter(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            arguments.first().map_or(Ok(()), writable)?;
            filter.call(state, &arguments)
        });
    }
}

/// The methods of Python's types, with the same limits.
pub(super) fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    let size = match (name, arguments) {
        ("replace", [from, to, ..]) => replaced_size(&[value.clone(), from.clone(), to.clone()]),
        ("join", [items, ..]) => joined_size(items, value),
        ("format", _) => widths(value),
        _ => 0,
    };
    within_limit(size)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn within_limit(size: usize) -> Result<(), minijinja::Error> {
    if size <= LARGEST_VALUE {
        return Ok(());
    }
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the result is too large"))
}

fn replaced_size(arguments: &[Value]) -> usize {
    let length = |at: usize| arguments.get(at).and_then(Value::as_str).map_or(0, str::len);
    let (text, from, to) = (length(0), length(1), length(2));
    // Nothing is found before each character and at the end.
    let found = text.checked_div(from).unwrap_or(text + 1);
    found.saturating_mul(to).saturating_add(text)
}

fn joined_size(items: &Value, joiner: &Value) -> usize {
    let between = joiner.as_str().map_or(0, str::len).saturating_mul(items.len().unwrap_or(0));
    let own = match items.kind() {
        ValueKind::Seq => items.try_iter().map_or(0, |items| items.map(|item| item.as_str().map_or(0, str::len)).sum()),
        _ => 0usize,
    };
    between.saturating_add(own)
}

/// The number of an argument that may have a name; 0 where there is none.
fn number(arguments: &[Value], at: usize, name: &str) -> usize {
    let named = || Kwargs::try_from(arguments.last()?.clone()).ok()?.peek::<usize>(name).ok();
    arguments.get(at).and_then(Value::as_usize).or_else(named).unwrap_or(0)
}

/// What the widths in a format come to: no text that is meant for a model is padded by more than three digits.
fn widths(format: &Value) -> usize {
    let is_wide =
        |text: &str| text.contains('*') || text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if format.as_str().is_some_and(is_wide) { usize::MAX } else { 0 }
}

/// Refuses what has too many parts, or none that is the innermost: a namespace may hold itself.
pub(super) fn writable(value: &Value) -> Result<(), minijinja::Error> {
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
    if !is_list(value) {
        return Ok(());
    }
    let mut waiting = vec![(value.clone(), 0)];
    let mut parts = 0;
    while let Some((value, depth)) = waiting.pop() {
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            parts += 1;
            if parts > MOST_PARTS || depth > DEEPEST_PART {
                return Err(invalid("a value with too many parts to be written"));
            }
            let item = if is_map { value.get_item(&item)? } else { item };
            if is_list(&item) {
                waiting.push((item, depth + 1));
            }
        }
    }
    Ok(())
}
