"""Renders every template here with jinja2 as transformers' apply_chat_template does; writes reference.json."""

import datetime
import json
import pathlib

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2025, 1, 15, 12, 0, 0)


class Generation(Extension):
    """{% generation %} marks what the model says; the text is not affected."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _content(self, context, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def messages(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CONVERSATIONS = {
    "one turn": messages(("user", "Hello, <b>world</b> & 'you'!")),
    "system": messages(("system", 'You are "helpful".\n'), ("user", "  Hi  ")),
    "turns": messages(("system", "Be brief."), ("user", "1+1?"), ("assistant", "2"), ("user", "And 2+2?\nQuick.")),
    "no system": messages(("user", "1+1?"), ("assistant", " It's 2. \n"), ("user", "é中🦙")),
    "thinking": messages(("user", "Why?"), ("assistant", "<think>\nhm\n</think>\n\nBecause."), ("user", "Ok")),
    "assistant last": messages(("user", "Hi"), ("assistant", "Hello")),
    "user twice": messages(("user", "a"), ("user", "b")),
}


def render(template, conversation, add_generation_prompt):
    try:
        text = template.render(
            messages=conversation,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            bos_token="<s>",
            eos_token="</s>",
        )
        return {"text": text}
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)}


def main():
    templates = {}
    for path in sorted(HERE.glob("*.jinja")):
        template = environment().from_string(path.read_text(encoding="utf-8"))
        templates[path.name] = {
            name: render(template, conversation, name != "assistant last")
            for name, conversation in CONVERSATIONS.items()
        }
    reference = {"conversations": CONVERSATIONS, "templates": templates}
    text = json.dumps(reference, ensure_ascii=False, indent=1)
    (HERE / "reference.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
