//! Devices that fail: each failure is an error that says what is wrong, and nothing is left behind.

use std::time::Duration;

use core_tensor::{Backend, BackendError};
use gpu_polaris::{Fault, Gpu, GpuOptions, VulkanBackend};

use crate::decoder::{Decoder, step, text};
use crate::model::{Model, assert_near, expected, floats, open};

fn memory(gpu: &Gpu) -> (u64, u64) {
    (gpu.allocated(), gpu.host_allocated())
}

/// The error's text; panics if there is none.
fn refused<T>(result: Result<T, BackendError>) -> String {
    match result {
        Ok(_) => panic!("it succeeds"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn running_out_of_memory_at_any_allocation_is_an_error_and_leaves_nothing_behind() {
    let backend = open(&GpuOptions::default());
    let gpu = backend.gpu();
    let graph = Decoder::default().graph();
    let expected = expected(&graph, 1);
    let mut after = 0;
    loop {
        gpu.plant(Fault::OutOfMemory, after);
        let run = || {
            let mut model = Model::load(&backend, &graph)?;
            model.token(0)
        };
        match run() {
            Ok(outputs) => {
                assert_near(&floats(&outputs), &expected[0]);
                break;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("no memory for ") && text.contains(" bytes of "), "allocation {after}: {text}");
            }
        }
        assert_eq!(memory(gpu), (0, 0), "after the failure of allocation {after}");
        after += 1;
    }
    // Weights, the staging ring, states, the arena, the step's values, outputs, and what is recorded on the way.
    assert!(after >= 8, "only {after} allocations were met");
    assert!(!gpu.is_lost());
}

#[test]
fn a_session_goes_on_after_a_run_that_found_no_memory() {
    let backend = open(&GpuOptions::default());
    let graph = Decoder::default().graph();
    let expected = expected(&graph, 3);
    let mut model = Model::load(&backend, &graph).unwrap();
    // The arena, which then stays, the step's values on either side, outputs.
    for after in 0..4 {
        backend.gpu().plant(Fault::OutOfMemory, after);
        let text = refused(model.token(0));
        assert!(text.contains("no memory for "), "{text}");
        assert_eq!(model.session.len(0).unwrap(), 0, "the failed run added nothing");
    }
    for (position, expected) in expected.iter().enumerate() {
        assert_near(&floats(&model.token(position).unwrap()), expected);
    }
}

#[test]
fn the_error_says_what_was_asked_for_and_what_was_free() {
    let backend = open(&GpuOptions::default().with_max_memory(64 << 10));
    let text = refused(Model::load(&backend, &Decoder::default().graph()));
    assert!(text.contains(backend.gpu().name()), "{text}");
    assert!(text.contains("of weights") && text.contains("65536 bytes are free"), "{text}");
    assert_eq!(memory(backend.gpu()), (0, 0));
}

#[test]
fn memory_comes_back_when_its_owners_go() {
    let backend = open(&GpuOptions::default());
    let graph = Decoder::default().graph();
    let mut model = Model::load(&backend, &graph).unwrap();
    let loaded = memory(backend.gpu());
    model.token(0).unwrap();
    assert!(memory(backend.gpu()).0 > loaded.0, "the arena counts");
    let weights = model.weights.clone();
    drop(model);
    assert_eq!(memory(backend.gpu()), (weights.byte_len(), 0), "weights stay as long as somebody has them");
    drop(weights);
    assert_eq!(memory(backend.gpu()), (0, 0));
    let alive = backend.gpu().watch();
    assert!(alive());
    drop(backend);
    assert!(!alive(), "something keeps the device");
}

/// Everything that can be asked of a backend says that the device is lost.
fn assert_lost(backend: &VulkanBackend, model: &mut Model) {
    let graph = Decoder::default().graph();
    assert!(backend.gpu().is_lost());
    let lost = |text: String| assert!(text.contains("lost") && text.contains("open it again"), "{text}");
    lost(refused(model.token(0)));
    lost(refused(Model::load(backend, &graph).map(drop)));
    lost(refused(backend.new_session(&graph, 1, &Decoder::bounds()).map(drop)));
    lost(model.session.copy_slot(0, 1).unwrap_err().to_string());
    lost(model.session.save_slot(0).unwrap_err().to_string());
    assert!(model.session.len(0).is_ok(), "what the host knows can be asked");
    lost(refused(model.program.run(&mut *model.session, &step(&text(7, 1), 0, 1))));
}

#[test]
fn a_device_lost_in_the_middle_of_a_generation_stays_lost_and_leaves_nothing_behind() {
    for fault in [Fault::DeviceLost, Fault::Timeout] {
        let backend = open(&GpuOptions::default());
        let graph = Decoder::default().graph();
        let mut model = Model::load(&backend, &graph).unwrap();
        model.token(0).unwrap();
        backend.gpu().plant(fault, 1);
        model.token(1).unwrap();
        let text = refused(model.token(2));
        let expected = if fault == Fault::Timeout { "did not end within" } else { "is lost" };
        assert!(text.contains(expected), "{text}");
        assert_lost(&backend, &mut model);
        let alive = backend.gpu().watch();
        drop(model);
        assert_eq!(memory(backend.gpu()), (0, 0), "{fault:?}");
        drop(backend);
        assert!(!alive(), "something keeps the device after {fault:?}");
        // Opened again, it works.
        Model::load(&open(&GpuOptions::default()), &graph).unwrap().token(0).unwrap();
    }
}

#[test]
fn a_device_lost_while_weights_load_leaves_nothing_behind() {
    for fault in [Fault::DeviceLost, Fault::Timeout] {
        let backend = open(&GpuOptions::default());
        backend.gpu().plant(fault, 0);
        let text = refused(Model::load(&backend, &Decoder::default().graph()));
        assert!(text.contains("lost"), "{text}");
        assert_eq!(memory(backend.gpu()), (0, 0));
    }
}

#[test]
fn a_submission_that_takes_longer_than_it_may_is_an_error_and_ends_before_its_memory_goes() {
    let graph = Decoder::default().graph();
    // No submission ends in a nanosecond, except by chance: then the next one is late.
    let backend = open(&GpuOptions::default().with_timeout(Duration::from_nanos(1)));
    let result = Model::load(&backend, &graph).and_then(|mut model| (0..40).try_for_each(|i| model.token(i).map(drop)));
    let text = refused(result);
    assert!(text.contains("did not end within 1ns"), "{text}");
    assert!(backend.gpu().is_lost());
    assert_eq!(memory(backend.gpu()), (0, 0));
}
