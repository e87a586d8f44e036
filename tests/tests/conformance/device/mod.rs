//! What imported graphs are made of, on every backend, devices included: none of these cases may be refused.

mod attention;
mod elements;
mod images;
mod indexing;
mod integer;
mod models;
mod moves;
mod products;
mod resample;
