//! The self-test of a device.

use gpu_polaris::{Fault, GpuOptions};

use crate::model::open;

#[test]
fn a_device_is_tested_once_and_that_it_passed_is_noted() {
    let folder = std::env::temp_dir().join(format!("polaris-self-test-{}", std::process::id()));
    let open = || open(&GpuOptions::default().with_pipeline_cache(Some(folder.clone())));
    let noted = || {
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|extension| extension == "tested")).count()
    };
    // A device that fails is not noted.
    let backend = open();
    backend.gpu().plant(Fault::DeviceLost, 1);
    assert!(backend.self_test_once().is_err());
    assert_eq!(noted(), 0);
    let backend = open();
    backend.self_test_once().unwrap();
    assert_eq!(noted(), 1);
    // The second time nothing runs.
    let before = backend.gpu().submissions();
    backend.self_test_once().unwrap();
    assert_eq!(backend.gpu().submissions(), before);
    assert_eq!(backend.gpu().allocated(), 0);
    std::fs::remove_dir_all(&folder).unwrap();
}
