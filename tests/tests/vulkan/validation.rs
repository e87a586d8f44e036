//! The validation layer finds nothing, and would.

use gpu_polaris::{Fault, GpuOptions};

use crate::decoder::{Decoder, step, text};
use crate::model::{Model, open};

#[test]
fn the_layer_finds_nothing_in_a_model_from_loading_to_the_end_of_its_device() {
    let backend = open(&GpuOptions::default().with_validation());
    let layer = backend.gpu().validation().expect("it was asked for").clone();
    let mut model = Model::load(&backend, &Decoder::default().graph()).unwrap();
    for position in 0..3 {
        model.token(position).unwrap();
    }
    model.session.copy_slot(0, 1).unwrap();
    let saved = model.session.save_slot(1).unwrap();
    model.session.truncate(0, 1).unwrap();
    model.session.restore_slot(0, &saved).unwrap();
    model.program.run(&mut *model.session, &step(&text(20, 9), 0, 1).clone()).err();
    model.token(3).unwrap();
    let alive = backend.gpu().watch();
    drop((model, backend));
    assert!(!alive(), "something keeps the device");
    assert_eq!(layer.messages(), Vec::<String>::new());
}

/// Leaves one barrier out, and gives what the layer says then.
fn without_barrier(number: usize) -> Vec<String> {
    let backend = open(&GpuOptions::default().with_validation());
    let mut model = Model::load(&backend, &Decoder::default().graph()).unwrap();
    backend.gpu().plant(Fault::MissingBarrier, number);
    model.token(0).unwrap();
    backend.gpu().validation_messages()
}

#[test]
fn the_layer_notices_a_missing_barrier() {
    // The first lets the step's values arrive, the others stand between kernels.
    for number in [0, 1, 4] {
        let messages = without_barrier(number);
        let hazards = messages.iter().filter(|message| message.contains("SYNC-HAZARD-"));
        assert!(hazards.count() > 0, "barrier {number}: {messages:?}");
    }
}

#[test]
fn a_device_without_the_layer_has_no_messages() {
    let backend = open(&GpuOptions::default());
    assert!(backend.gpu().validation().is_none());
    assert!(backend.gpu().validation_messages().is_empty());
}
