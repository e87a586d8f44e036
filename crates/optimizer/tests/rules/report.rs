//! Reports, options and rules of users.

use core_tensor::op::{Binary, Op, Reshape, Unary};
use core_tensor::{DType, Graph};
use polaris_optimizer::{
    OptimizeOptions, Pass, Pattern, Reject, Rule, built_in_rules, optimize, optimize_with_options,
};

use crate::graphs::{Build, sym};

#[test]
fn names_of_rules_are_unique_and_documented() {
    let mut names = std::collections::HashSet::new();
    for (_, rules) in built_in_rules() {
        for rule in rules {
            assert!(names.insert(rule.name()), "{}", rule.name());
            assert!(!rule.doc().is_empty());
        }
    }
}

fn squares() -> Graph {
    let mut b = Build::new();
    let x = b.input(&[sym("rows")]);
    let y = b.pow(x, 2.0);
    b.output(y)
}

#[test]
fn a_rule_that_is_left_out_does_not_fire() {
    let options = OptimizeOptions { without: ["square".to_owned()].into(), ..OptimizeOptions::default() };
    let (graph, report) = optimize_with_options(squares(), &options).unwrap();
    assert_eq!((graph.nodes()[0].op.name(), report.rule("square")), ("Pow", None));
    let options = OptimizeOptions { passes: vec![Pass::DeadCode], ..OptimizeOptions::default() };
    assert_eq!(optimize_with_options(squares(), &options).unwrap().0.nodes()[0].op.name(), "Pow");
}

#[test]
fn a_replacement_of_another_type_is_refused() {
    let rule = Rule::new("wrong", "gives another shape", Pattern::unary(Unary::Exp, Pattern::value("x")), |r| {
        let x = r.input("x")?;
        r.add(Op::Reshape(Reshape { shape: vec![2.into(), 2.into()] }), &[x])
    });
    let refusing = Rule::new("refusing", "refuses", Pattern::unary(Unary::Exp, Pattern::value("x")), |_| {
        Err(Reject::because("it does not want to"))
    });
    let mut graph = Graph::new("types");
    let x = graph.input("x", DType::F32, &[4.into()]);
    let y = graph.add("y", Op::Unary(Unary::Exp), &[x]).unwrap();
    graph.output(y);
    let options = OptimizeOptions { rules: vec![rule, refusing], ..OptimizeOptions::default() };
    let (graph, report) = optimize_with_options(graph, &options).unwrap();
    assert_eq!(graph.nodes()[0].op.name(), "Exp");
    let reason = |name: &str| report.rule(name).unwrap().near_misses[0].reason.clone();
    assert_eq!(reason("wrong"), "f32[2, 2] would take the place of f32[4]");
    assert_eq!(reason("refusing"), "it does not want to");
    assert!(report.explain().contains("node \"y\": it does not want to"), "{}", report.explain());
}

#[test]
fn outputs_keep_their_names() {
    let mut graph = Graph::new("outputs");
    let x = graph.input("x", DType::F32, &[4.into()]);
    let one = graph.add("one", Op::Unary(Unary::Neg), &[x]).unwrap();
    let two = graph.add("two", Op::Unary(Unary::Neg), &[x]).unwrap();
    let three = graph.add("three", Op::Unary(Unary::Neg), &[two]).unwrap();
    let four = graph.add("four", Op::Binary(Binary::Mul), &[one, two]).unwrap();
    for y in [one, two, three, four] {
        graph.output(y);
    }
    let (graph, _) = optimize(graph).unwrap();
    let names: Vec<&str> = graph.outputs().iter().map(|id| graph.value(*id).name.as_str()).collect();
    assert_eq!(names, ["one", "two", "three", "four"]);
}

#[test]
fn graphs_within_nodes_are_optimized_too() {
    let branch = |exponent: f32| {
        let mut b = Build::new();
        let x = b.input(&[4.into()]);
        let y = b.pow(x, exponent);
        std::sync::Arc::new(b.output(y))
    };
    let mut graph = Graph::new("choice");
    let condition = graph.input("condition", DType::Bool, &[]);
    let x = graph.input("x", DType::F32, &[4.into()]);
    let outputs = vec![core_tensor::ValueType::tensor(DType::F32, &[4.into()])];
    let choice = core_tensor::op::If { then_branch: branch(2.0), else_branch: branch(-1.0), outputs };
    let y = graph.add("y", Op::If(choice), &[condition, x]).unwrap();
    graph.output(y);
    let (graph, report) = optimize(graph).unwrap();
    let inner: Vec<&str> = graph.nodes()[0].op.subgraphs().iter().map(|graph| graph.nodes()[0].op.name()).collect();
    assert_eq!(inner, ["Mul", "Reciprocal"]);
    assert_eq!(report.rule("square").map(|rule| rule.fired), Some(1));
}
