use super::*;

fn render(source: &str) -> Result<String, ChatTemplateError> {
    ChatTemplate::new(source)?.render(&[Message::new("user", "a<b")], &RenderOptions::default())
}

fn failed(result: Result<String, ChatTemplateError>) -> (Option<usize>, String) {
    match result {
        Err(ChatTemplateError::Failed { line, message }) => (line, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn blocks_are_trimmed_and_nothing_is_escaped() {
    let source =
        "{% for message in messages %}\n  {% if true %}\n{{ message['content'] }}\n  {% endif %}\n{% endfor %}\n";
    assert_eq!(render(source).unwrap(), "a<b\n");
}

#[test]
fn the_last_line_end_of_the_template_is_dropped() {
    assert_eq!(render("x\n\n").unwrap(), "x\n");
}

#[test]
fn tokens_are_defined_only_where_they_are_given() {
    let template = ChatTemplate::new("{{ bos_token }}|{{ eos_token is defined }}").unwrap();
    let options = RenderOptions { bos_token: Some("<s>".into()), ..RenderOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "<s>|False");
}

#[test]
fn variables_reach_the_template_and_do_not_hide_the_messages() {
    let template = ChatTemplate::new("{{ enable_thinking }} {{ messages | length }}").unwrap();
    let variables = [("enable_thinking", false.into()), ("messages", "none".into())];
    let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
    let options = RenderOptions { variables, ..RenderOptions::default() };
    assert_eq!(template.render(&[], &options).unwrap(), "False 0");
}

#[test]
fn python_methods_and_loop_controls_work() {
    let source = "{% for m in messages %}{% if loop.first %}{{ ' x '.strip() + m.get('role').upper() }}{% break %}{% endif %}{% endfor %}";
    assert_eq!(render(source).unwrap(), "xUSER");
}

#[test]
fn json_is_laid_out_as_python_does() {
    let value = "{% set v = {'b': [1, 2.5, none, []], 'a': '<é\"'} %}";
    let json = |filter: &str| render(&format!("{value}{{{{ v | {filter} }}}}")).unwrap();
    assert_eq!(json("tojson"), r#"{"b": [1, 2.5, null, []], "a": "<é\""}"#);
    assert_eq!(
        json("tojson(indent=2)"),
        "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    []\n  ],\n  \"a\": \"<é\\\"\"\n}"
    );
    assert_eq!(json("tojson(separators=(',', ':'))"), r#"{"b":[1,2.5,null,[]],"a":"<é\""}"#);
}

#[test]
fn the_date_is_that_of_the_clock_given() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %-d, %Y') }}").unwrap();
    let noon = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_709_208_000);
    let text = template.with_time(noon).render(&[], &RenderOptions::default()).unwrap();
    assert_eq!(text, "29 Feb 2024 February 29, 2024");
    assert!(failed(render("{{ strftime_now('%') }}")).1.contains('%'));
}

#[test]
fn marks_for_training_are_without_effect() {
    assert_eq!(render("a{% generation %}b{% endgeneration %}c").unwrap(), "abc");
    assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c{% set generation = 1 %}").unwrap(), "abc");
    assert!(matches!(render("a{% generation"), Err(ChatTemplateError::Syntax { .. })));
}

#[test]
fn a_template_refuses_messages_in_its_own_words() {
    let result = render("{% if messages[0].role != 'system' %}{{ raise_exception('System first!') }}{% endif %}");
    assert_eq!(result.unwrap_err().to_string(), "the chat template refuses the messages: System first!");
}

#[test]
fn faults_name_their_line() {
    let error = render("a\n{% if %}").unwrap_err();
    assert!(matches!(error, ChatTemplateError::Syntax { line: Some(2), .. }), "{error}");
    assert!(error.to_string().starts_with("the chat template does not parse (line 2): syntax error: "));
    let (line, message) = failed(render("a\n\n{{ messages[0].nothing.at_all }}"));
    assert_eq!((line, message.is_empty()), (Some(3), false));
    assert_eq!(ChatTemplate::from_metadata(None).unwrap_err(), ChatTemplateError::Missing);
}

#[test]
fn templates_that_run_away_are_stopped() {
    let long = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert_eq!(render(long), Err(ChatTemplateError::TooManySteps { steps: most_steps(1) }));
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(failed(render(deep)).1.contains("recursion"));
    let much = "{% set x = 'x' * 1000000 %}{% for a in range(100) %}{{ x }}{% endfor %}";
    assert_eq!(render(much), Err(ChatTemplateError::TooMuchText));
    let bytes = LONGEST_SOURCE + 1;
    assert_eq!(render(&" ".repeat(bytes)), Err(ChatTemplateError::TooLong { bytes }));
}

#[test]
fn values_that_grow_without_end_are_stopped() {
    let nested = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
    for source in [
        "{{ ('a' * 100000).replace('', 'b' * 100000) | length }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) | length }}",
        "{{ range(99999) | join('a' * 10000) | length }}",
        "{{ ('a' * 10000).join(['b'] * 99999) | length }}",
        "{{ 'a\nb' | indent(100000000000) }}",
        "{{ 'a\nb' | indent(width=100000000000) }}",
        "{{ [1] | batch(100000000000, 'x') | list | length }}",
        "{{ [1] | slice(1000000000, 'x') | list | length }}",
        "{{ '%1000000000d' | format(1) }}",
        "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.x = [n] %}{{ n | tojson }}",
        "{% set n = namespace() %}{% set n.x = n %}{{ n | string }}",
        &format!("{nested}{{{{ n.x }}}}"),
        &format!("{nested}{{{{ n.x | tojson | length }}}}"),
    ] {
        let (_, message) = failed(render(source));
        assert!(message.contains("too "), "{source}: {message}");
    }
    assert_eq!(
        render("{{ 'a\nb' | indent(2) }} {{ '%5d' | format(1) }} {{ 'a.b'.replace('.', '-') }}").unwrap(),
        "a\n  b     1 a-b"
    );
    assert_eq!(
        render("{{ [1, 2, 3] | batch(2) | list }} {{ ['a', 'b'] | join(', ') }}").unwrap(),
        "[[1, 2], [3]] a, b"
    );
}

#[test]
fn work_that_takes_too_long_is_left_alone() {
    let limit = Duration::from_millis(20);
    let result = on_stack_for(1, limit, || thread::sleep(Duration::from_secs(5)));
    assert_eq!(result, Err(ChatTemplateError::TooMuchTime { limit }));
}

#[test]
fn what_a_template_says_is_fit_for_a_terminal() {
    let error = render("{{ raise_exception('no\x1b[31m' + 'x' * 100000) }}").unwrap_err().to_string();
    assert!(error.len() < 1100 && !error.contains('\x1b'), "{error}");
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let length = LONGEST_SOURCE - 100;
    for (start, unit, end) in [
        ("{{ ", "(", ""),
        ("{{ ", "-", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ x", ".a", " }}"),
        ("{{ x", "|e", " }}"),
        ("{% if x %}", "{%elif x%}", "{% endif %}"),
    ] {
        let source = [start, &unit.repeat(length / unit.len()), end].concat();
        let _either_way = render(&source);
    }
    // Ten levels for each round of the loop.
    let nest =
        "{% set n = namespace(x=[]) %}{% for i in range(1200) %}{% set n.x = [[[[[[[[[[n.x]]]]]]]]]] %}{% endfor %}";
    for (use_it, length) in [("", 0), ("{{ n.x }}", 24_002), ("{{ n.x | tojson }}", 24_002), ("{{ n.x == [n.x] }}", 5)]
    {
        assert_eq!(render(&format!("{nest}{use_it}")).map(|text| text.len()), Ok(length), "{use_it}");
    }
}

#[test]
fn a_panic_of_the_engine_is_an_error() {
    assert!(failed(render("{% for m in [][::-1] %}{% endfor %}")).1.contains("engine"));
}
