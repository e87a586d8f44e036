//! Sessions: slots are independent sequences that can be cut, copied, saved and restored, and wrong steps change nothing.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{Attention, Op, StateWrite, Unary};
use core_tensor::{
    Backend, Bindings, BlockFormat, DType, Dim, Graph, ReferenceBackend, SlotSnapshot, StateDecl, StateError, Tensor,
};

use crate::backends::schedulers;
use crate::compare::{Case, KERNEL, Loaded, difference, load};
use crate::decoder::{Decoder, step, text};
use crate::random::{Random, ints};

const RING: Decoder = Decoder { weights: DType::F32, cache: DType::F32, capacity: 96, ring: Some((6, 20)) };

/// Runs a fact on the reference and on every scheduler, for a decoder with plain states and one with rings.
fn everywhere(fact: impl Fn(&str, &dyn Fn(usize) -> Loaded)) {
    let q8 = Decoder { weights: DType::Block(BlockFormat::Q4_0), ..Decoder::default() };
    for decoder in [Decoder::default(), q8, RING] {
        let graph = decoder.graph();
        let reference = ReferenceBackend::default();
        let backends = schedulers().map(|candidate| &*candidate.backend);
        for backend in backends.chain([&reference as &dyn Backend]) {
            let name = format!("{}, {decoder:?}", backend.description());
            fact(&name, &|slots| load(backend, &graph, slots, &Decoder::bounds()).expect("it loads"));
        }
    }
}

/// The logits of tokens of one slot from a position on.
fn run(loaded: &mut Loaded, tokens: &[i32], position: usize, slot: usize) -> Tensor {
    let mut outputs = loaded.run(&step(tokens, position, slot)).expect("the step runs");
    outputs.remove(0)
}

fn same(name: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.bytes(), b.bytes(), "{name}");
}

fn snapshots(loaded: &Loaded) -> Vec<SlotSnapshot> {
    (0..loaded.session.slots()).map(|slot| loaded.session.save_slot(slot).expect("there is the slot")).collect()
}

#[test]
fn a_decoder_agrees_over_many_steps_of_many_slots() {
    let mut steps = vec![step(&text(9, 1), 0, 0), step(&text(15, 2), 0, 1)];
    for i in 0..12 {
        let (a, b) = (step(&text(1, 10 + i), 9 + i as usize, 0), step(&text(1, 30 + i), 15 + i as usize, 1));
        let both = (0..3).map(|j| {
            let ids = [a[j].to_vec::<i32>().expect("ints"), b[j].to_vec::<i32>().expect("ints")].concat();
            ints(&ids)
        });
        steps.push(both.collect());
    }
    steps.push(step(&text(5, 3), 0, 2));
    let block = Decoder { weights: DType::Block(BlockFormat::Q8_0), cache: DType::F32, ..Decoder::default() };
    for decoder in [Decoder::default(), RING, block] {
        let mut case = Case::new(core_tensor::Graph::new(""), Decoder::bounds(), steps.clone());
        case.graph = decoder.graph();
        // An f16 of the cache that falls the other way moves what follows by its last bit; the softmax of random layers makes much of
        // activations that are rounded.
        case.rounding = 0.05;
        case.with_slots(3).within(1e-6).check();
    }
}

#[test]
fn a_truncated_slot_gives_the_logits_that_it_gave() {
    everywhere(|name, load| {
        let mut loaded = load(2);
        let tokens = text(12, 1);
        run(&mut loaded, &tokens, 0, 1);
        let first = run(&mut loaded, &[3, 4], 12, 1);
        loaded.session.truncate(1, 12).expect("it holds 14");
        assert_eq!(loaded.session.len(1), Ok(12));
        run(&mut loaded, &[5], 12, 1);
        loaded.session.truncate(1, 12).expect("it holds 13");
        same(name, &run(&mut loaded, &[3, 4], 12, 1), &first);
        loaded.session.truncate(1, 0).expect("emptying is always possible");
        let again = run(&mut loaded, &tokens, 0, 1);
        let mut fresh = load(2);
        same(name, &again, &run(&mut fresh, &tokens, 0, 1));
    });
}

#[test]
fn a_copied_slot_goes_on_like_its_source_and_leaves_it_alone() {
    everywhere(|name, load| {
        let mut loaded = load(3);
        run(&mut loaded, &text(13, 1), 0, 0);
        run(&mut loaded, &text(15, 9), 0, 2);
        loaded.session.copy_slot(0, 2).expect("there are both");
        loaded.session.copy_slot(0, 0).expect("a slot may be copied onto itself");
        let copy = run(&mut loaded, &[1, 2, 3], 13, 2);
        same(name, &run(&mut loaded, &[1, 2, 3], 13, 0), &copy);
        assert_eq!(loaded.session.copy_slot(0, 3), Err(StateError::Slot { slot: 3, slots: 3 }));
        assert_eq!(loaded.session.copy_slot(3, 0), Err(StateError::Slot { slot: 3, slots: 3 }));
    });
}

#[test]
fn a_restored_slot_goes_on_as_if_nothing_had_happened() {
    everywhere(|name, load| {
        let mut loaded = load(2);
        for round in 0..3usize {
            // The third time the ring has wrapped around.
            run(&mut loaded, &text(13, round as u64), 13 * round, 0);
        }
        let snapshot = loaded.session.save_slot(0).expect("there is the slot");
        assert_eq!(snapshot.len, 39);
        let first = run(&mut loaded, &[7, 8], 39, 0);
        run(&mut loaded, &text(9, 5), 0, 1);
        // Into another slot, into its own, and into another session.
        loaded.session.restore_slot(1, &snapshot).expect("it fits");
        same(name, &run(&mut loaded, &[7, 8], 39, 1), &first);
        loaded.session.restore_slot(0, &snapshot).expect("it fits");
        assert_eq!(loaded.session.save_slot(0), Ok(snapshot.clone()));
        same(name, &run(&mut loaded, &[7, 8], 39, 0), &first);
        let mut other = load(1);
        other.session.restore_slot(0, &snapshot).expect("it fits");
        same(name, &run(&mut other, &[7, 8], 39, 0), &first);
    });
}

#[test]
fn a_snapshot_of_one_backend_is_restored_by_another() {
    for decoder in [Decoder::default(), RING] {
        let graph = decoder.graph();
        let mut reference = load(&ReferenceBackend::default(), &graph, 1, &Decoder::bounds()).expect("it loads");
        run(&mut reference, &text(13, 1), 0, 0);
        run(&mut reference, &text(9, 2), 13, 0);
        let snapshot = reference.session.save_slot(0).expect("there is the slot");
        let expected = run(&mut reference, &[1, 2, 3], 22, 0);
        for candidate in schedulers() {
            let mut other = load(&*candidate.backend, &graph, 2, &Decoder::bounds()).expect("it loads");
            other.session.restore_slot(1, &snapshot).expect("it fits");
            let found = run(&mut other, &[1, 2, 3], 22, 1);
            difference(&found, &expected, 10.0 * KERNEL).expect("the logits agree");
        }
    }
}

#[test]
fn wrong_snapshots_are_refused_and_change_nothing() {
    everywhere(|name, load| {
        let mut loaded = load(2);
        run(&mut loaded, &text(10, 1), 0, 0);
        let good = loaded.session.save_slot(0).expect("there is the slot");
        let before = snapshots(&loaded);
        let mut wrong = vec![good.clone(); 7];
        wrong[0].states.pop();
        wrong[1].len = 9;
        wrong[2].states[3].bytes.pop();
        wrong[3].states[1].row[0] += 1;
        wrong[4].states[2].dtype = DType::F64;
        wrong[5].states[0].first = 11;
        let last = &mut wrong[6];
        last.len = 1000;
        for state in &mut last.states {
            let row = state.bytes.len() / 10;
            state.bytes = vec![0; row * 1000];
        }
        for (i, snapshot) in wrong.iter().enumerate() {
            let result = loaded.session.restore_slot(1, snapshot);
            assert!(matches!(result, Err(StateError::Snapshot(_))), "{name}: snapshot {i}: {result:?}");
            assert_eq!(snapshots(&loaded), before, "{name}: snapshot {i}");
        }
        assert_eq!(loaded.session.restore_slot(2, &good), Err(StateError::Slot { slot: 2, slots: 2 }));
        assert_eq!(loaded.session.save_slot(2), Err(StateError::Slot { slot: 2, slots: 2 }));
        assert_eq!(loaded.session.len(2), Err(StateError::Slot { slot: 2, slots: 2 }));
        let held = StateError::Length { slot: 0, len: 10, asked: 11 };
        assert_eq!(loaded.session.truncate(0, 11), Err(held));
    });
}

#[test]
fn a_ring_is_cut_only_where_it_still_holds_the_window() {
    let graph = RING.graph();
    let reference = ReferenceBackend::default();
    for backend in schedulers().map(|c| &*c.backend).chain([&reference as &dyn Backend]) {
        let load = || load(backend, &graph, 2, &Decoder::bounds()).expect("it loads");
        let mut loaded = load();
        let tokens = text(30, 1);
        run(&mut loaded, &tokens[..15], 0, 0);
        run(&mut loaded, &tokens[15..], 15, 0);
        // 30 rows written into 20: rows 10.. are there. A reader at position p looks back at p - 5.
        assert_eq!(loaded.session.truncate(0, 14), Err(StateError::WindowMoved { slot: 0, asked: 14 }));
        assert_eq!(loaded.session.len(0), Ok(30));
        let snapshot = loaded.session.save_slot(0).expect("there is the slot");
        let mut fresh = load();
        run(&mut fresh, &tokens[..15], 0, 0);
        let expected = run(&mut fresh, &[1, 2], 15, 0);
        loaded.session.truncate(0, 15).expect("rows 10.. are enough");
        same(backend.name(), &run(&mut loaded, &[1, 2], 15, 0), &expected);
        // What was cut knows what it lost; so does what is restored, and a copy.
        for slot in [0, 1] {
            loaded.session.restore_slot(slot, &snapshot).expect("it fits");
            assert_eq!(loaded.session.truncate(slot, 14), Err(StateError::WindowMoved { slot, asked: 14 }));
            loaded.session.truncate(slot, 16).expect("rows 11.. are enough");
        }
        let cut = loaded.session.save_slot(0).expect("there is the slot");
        let mut other = load();
        other.session.restore_slot(1, &cut).expect("it fits");
        assert_eq!(other.session.truncate(1, 14), Err(StateError::WindowMoved { slot: 1, asked: 14 }));
        other.session.copy_slot(1, 0).expect("there are both");
        assert_eq!(other.session.truncate(0, 14), Err(StateError::WindowMoved { slot: 0, asked: 14 }));
        other.session.truncate(0, 15).expect("rows 10.. are enough");
        same(backend.name(), &run(&mut other, &[1, 2], 15, 0), &expected);
    }
}

#[test]
fn wrong_steps_are_errors_and_change_nothing() {
    let plain = Decoder { capacity: 20, ..Decoder::default() };
    let reference = ReferenceBackend::default();
    for decoder in [plain, Decoder { capacity: 20, ..RING }] {
        let graph = decoder.graph();
        for backend in schedulers().map(|c| &*c.backend).chain([&reference as &dyn Backend]) {
            let mut loaded = load(backend, &graph, 2, &Decoder::bounds()).expect("it loads");
            run(&mut loaded, &text(10, 1), 0, 1);
            let before = snapshots(&loaded);
            let wrong = [
                ("a gap", step(&[1], 11, 1)),
                ("a gap within the step", vec![ints(&[1, 2]), ints(&[10, 12]), ints(&[1, 1])]),
                ("a position twice", vec![ints(&[1, 2]), ints(&[10, 10]), ints(&[1, 1])]),
                ("a negative position", vec![ints(&[1]), ints(&[-1]), ints(&[1])]),
                ("a slot that is not there", step(&[1], 0, 2)),
                ("a negative slot", vec![ints(&[1]), ints(&[0]), ints(&[-1])]),
                ("an empty slot's second position", step(&[1], 1, 0)),
                ("past the capacity", step(&text(11, 2), 10, 1)),
                ("more rows than compiled for", step(&text(25, 2), 0, 0)),
                ("a token that is not in the table", step(&[1, 50, 2], 10, 1)),
                ("a token before the table", step(&[-1000], 10, 1)),
                ("other shapes", vec![ints(&[1]), ints(&[10, 11]), ints(&[1, 1])]),
                ("too few inputs", vec![ints(&[1]), ints(&[10])]),
            ];
            for (what, inputs) in wrong {
                let result = loaded.run(&inputs);
                assert!(result.is_err(), "{}: {what} is no error", backend.description());
                let len: Vec<_> = (0..2).map(|slot| loaded.session.len(slot).expect("there is the slot")).collect();
                assert_eq!(len, [0, 10], "{}: {what}", backend.description());
                assert_eq!(snapshots(&loaded), before, "{}: {what}", backend.description());
            }
            let mut fresh = load(backend, &graph, 2, &Decoder::bounds()).expect("it loads");
            run(&mut fresh, &text(10, 1), 0, 1);
            let expected = run(&mut fresh, &[1, 2, 3], 10, 1);
            same(&backend.description(), &run(&mut loaded, &[1, 2, 3], 10, 1), &expected);
        }
    }
}

#[test]
fn one_program_runs_sessions_of_several_threads_at_the_same_time() {
    let decoder = Decoder { weights: DType::Block(BlockFormat::Q8_0), ..Decoder::default() };
    let graph = decoder.graph();
    for candidate in schedulers() {
        let loaded = load(&*candidate.backend, &graph, 1, &Decoder::bounds()).expect("it loads");
        let program = Arc::clone(&loaded.program);
        let sequence = |seed: u64, mut session: Box<dyn core_tensor::Session>| {
            let mut logits = Vec::new();
            for (i, len) in [5, 1, 7, 1, 1, 9, 1, 1].into_iter().enumerate() {
                let at = session.len(0).expect("there is the slot");
                let inputs = step(&text(len, seed + i as u64), at, 0);
                logits.extend(program.run(&mut *session, &inputs).expect("the step runs"));
            }
            logits
        };
        let session = || candidate.backend.new_session(&graph, 1, &Decoder::bounds()).expect("a session");
        let alone: Vec<_> = (0..3).map(|seed| sequence(seed, session())).collect();
        for _ in 0..5 {
            let together: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3)
                    .map(|seed| {
                        let (sequence, session) = (&sequence, session());
                        scope.spawn(move || sequence(seed, session))
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            for (alone, together) in alone.iter().flatten().zip(together.iter().flatten()) {
                same(&candidate.backend.description(), together, alone);
            }
        }
    }
}

/// What a step writes is the same, whichever outputs are asked for: programs for some of them share the session.
#[test]
fn states_written_without_their_reader_are_read_by_the_program_that_has_it() {
    for dtype in [DType::F32, DType::F16] {
        let mut graph = Graph::new("outputs");
        let tokens = Dim::sym("tokens");
        let x = graph.input("x", DType::F32, &[tokens.clone(), 2.into(), 16.into()]);
        let rows = ["positions", "slots"].map(|name| graph.input(name, DType::I32, std::slice::from_ref(&tokens)));
        let written = ["keys", "values"].map(|name| {
            let row = vec![2, 16];
            let decl = StateDecl { name: name.into(), dtype, row, capacity: 80.into(), window: None };
            let state = graph.add_state(decl);
            graph.add(name, Op::StateWrite(StateWrite { state }), &[x, rows[0], rows[1]]).expect("a write")
        });
        let attention = Op::Attention(Attention { scale: 0.25, softcap: None, window: None });
        let seen = graph.add("seen", attention, &[x, written[0], written[1], rows[0], rows[1]]).expect("attention");
        let other = graph.add("other", Op::Unary(Unary::Neg), &[x]).expect("a function");
        graph.output(seen);
        graph.output(other);
        let (graph, bounds) = (Arc::new(graph), Bindings::new().with("tokens", 70));
        let mut random = Random::new(8);
        let first = [random.f32(&[70, 2, 16]), ints(&(0..70).collect::<Vec<_>>()), ints(&[0; 70])];
        let second = [random.f32(&[1, 2, 16]), ints(&[70]), ints(&[0])];
        let run = |backend: &dyn Backend| {
            let weights = backend.load_weights(&graph, &mut |_, _| ControlFlow::Continue(())).expect("no weights");
            let mut session = backend.new_session(&graph, 1, &bounds).expect("a session");
            let mut outputs = Vec::new();
            for (wanted, inputs) in [(1, &first), (0, &second)] {
                let graph = graph.with_outputs(&[wanted]);
                // Without attention there are two writes and a function.
                assert_eq!(graph.nodes().len(), 3, "{}", graph.to_text());
                let program = backend.compile(&graph, &weights, &bounds).expect("it compiles");
                outputs.extend(program.run(&mut *session, inputs).expect("it runs"));
            }
            outputs
        };
        let expected = run(&ReferenceBackend::default());
        for candidate in schedulers() {
            for (found, expected) in run(&*candidate.backend).iter().zip(&expected) {
                if let Err(reason) = difference(found, expected, KERNEL) {
                    panic!("{}, {dtype}: {reason}", candidate.backend.description());
                }
            }
        }
    }
}
