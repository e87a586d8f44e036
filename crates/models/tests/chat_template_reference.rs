//! Chat templates of published models against the texts that jinja2 renders
//! (`chat_templates/README.md`).

use std::time::{Duration, UNIX_EPOCH};

use models::chat_template::{ChatTemplate, ChatTemplateError, Message, RenderOptions};
use serde_json::Value;

const TEMPLATES: [(&str, &str); 9] = [
    ("DeepSeek-R1-Distill-Qwen-32B.jinja", include_str!("chat_templates/DeepSeek-R1-Distill-Qwen-32B.jinja")),
    ("Mistral-Nemo-Instruct-2407.jinja", include_str!("chat_templates/Mistral-Nemo-Instruct-2407.jinja")),
    ("Phi-3.5-mini-instruct.jinja", include_str!("chat_templates/Phi-3.5-mini-instruct.jinja")),
    ("Qwen2.5-7B-Instruct.jinja", include_str!("chat_templates/Qwen2.5-7B-Instruct.jinja")),
    ("Qwen3-0.6B.jinja", include_str!("chat_templates/Qwen3-0.6B.jinja")),
    ("Qwen3-Coder.jinja", include_str!("chat_templates/Qwen3-Coder.jinja")),
    ("SmolLM2-135M-Instruct.jinja", include_str!("chat_templates/SmolLM2-135M-Instruct.jinja")),
    ("SmolLM3-3B.jinja", include_str!("chat_templates/SmolLM3-3B.jinja")),
    ("granite-3.3-2b-instruct.jinja", include_str!("chat_templates/granite-3.3-2b-instruct.jinja")),
];

/// 2025-01-15 12:00 UTC: the same day nearly everywhere.
const NOON: Duration = Duration::from_secs(1_736_942_400);

fn messages(conversation: &Value) -> Vec<Message> {
    let text = |message: &Value, key| message[key].as_str().unwrap().to_owned();
    let messages = conversation.as_array().unwrap().iter();
    messages.map(|message| Message::new(text(message, "role"), text(message, "content"))).collect()
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let reference: Value = serde_json::from_str(include_str!("chat_templates/reference.json")).unwrap();
    let expected = reference["templates"].as_object().unwrap();
    assert_eq!(expected.len(), TEMPLATES.len());
    for (name, source) in TEMPLATES {
        let template = ChatTemplate::new(source).unwrap().with_time(UNIX_EPOCH + NOON);
        for (conversation, expected) in expected[name].as_object().unwrap() {
            let options = RenderOptions {
                bos_token: Some("<s>".into()),
                eos_token: Some("</s>".into()),
                add_generation_prompt: conversation != "assistant last",
                ..RenderOptions::default()
            };
            let result = template.render(&messages(&reference["conversations"][conversation]), &options);
            let expected = match (&expected["text"], &expected["refused"]) {
                (Value::String(text), _) => Ok(text.clone()),
                (_, Value::String(message)) => Err(ChatTemplateError::Refused { message: message.clone() }),
                _ => panic!("{name}, {conversation}: no reference"),
            };
            assert_eq!(result, expected, "{name}, {conversation}");
        }
    }
}
