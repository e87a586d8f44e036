use core_tensor::op::{Dft, Distribution, Op, Random};
use core_tensor::{Bindings, DType, Dim, evaluate};

use super::{assert_close, one, refusal, run, tensor};

fn dft(length: usize, inverse: bool, onesided: bool) -> Op {
    Op::Dft(Dft { axis: 1, length: Dim::Num(length), inverse, onesided })
}

#[test]
fn half_a_spectrum_as_numpy_has_it_and_back() {
    let x = tensor(&[1, 5, 1], &[1.0f32, 2.0, 4.0, -1.0, 0.5]);
    let spectrum = [6.5, 0.0, -0.6545085, -4.365511, -0.0954915, 3.8736048];
    let (shape, y) = one(&dft(5, false, true), std::slice::from_ref(&x));
    assert_eq!(shape, [1, 3, 2]);
    assert_close(&y, &spectrum);
    for length in [5, 8] {
        let half = run(&dft(length, false, true), std::slice::from_ref(&x));
        let (shape, back) = one(&dft(length, true, true), &half);
        assert_eq!(shape, [1, length, 1]);
        assert_close(&back[..5], &x.to_f32().unwrap());
        let whole = run(&dft(length, false, false), std::slice::from_ref(&x));
        let (_, back) = one(&dft(length, true, false), &whole);
        assert_close(&back.iter().step_by(2).take(5).copied().collect::<Vec<_>>(), &x.to_f32().unwrap());
    }
}

#[test]
fn other_extents_stay_apart() {
    let x = tensor(&[2, 2, 2, 1], &[1.0f32, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0]);
    let (_, y) = one(&dft(2, false, false), &[x]);
    let real: Vec<f32> = y.iter().step_by(2).copied().collect();
    assert_close(&real, &[3.0, 30.0, -1.0, -10.0, 7.0, 70.0, -1.0, -10.0]);
}

#[test]
fn what_is_no_signal_is_refused() {
    let x = tensor(&[1, 2, 3], &[0.0f32; 6]);
    refusal(&dft(2, false, false), &[x]);
    let x = tensor(&[1, 2, 1], &[0.0f32; 2]);
    refusal(&dft(0, false, false), std::slice::from_ref(&x));
    refusal(&dft(usize::MAX, false, false), std::slice::from_ref(&x));
    refusal(&Op::Dft(Dft { axis: 2, length: Dim::Num(1), inverse: false, onesided: false }), &[x]);
}

#[test]
fn random_numbers_have_their_distribution_and_are_the_same_in_every_run() {
    let random =
        |distribution, seed| Op::Random(Random { distribution, seed, dtype: DType::F32, shape: vec![Dim::sym("n")] });
    let draw = |op: &Op| evaluate(op, &[], &Bindings::new().with("n", 4000)).unwrap()[0].to_f32().unwrap();
    let bell = random(Distribution::Normal { mean: 3.0, scale: 2.0 }, 7);
    let (x, other) = (draw(&bell), draw(&random(Distribution::Normal { mean: 3.0, scale: 2.0 }, 8)));
    assert_eq!(x, draw(&bell));
    assert_ne!(x, other);
    let mean = x.iter().sum::<f32>() / 4000.0;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4000.0;
    assert!((mean - 3.0).abs() < 0.15 && (variance - 4.0).abs() < 0.4, "mean {mean}, variance {variance}");
    let even = draw(&random(Distribution::Uniform { low: -1.0, high: 3.0 }, 7));
    assert!(even.iter().all(|v| (-1.0..=3.0).contains(v)));
    assert!((even.iter().sum::<f32>() / 4000.0 - 1.0).abs() < 0.1);
    let wrong = Random {
        distribution: Distribution::Uniform { low: 0.0, high: 1.0 },
        seed: 0,
        dtype: DType::I32,
        shape: vec![],
    };
    refusal(&Op::Random(wrong), &[]);
}
