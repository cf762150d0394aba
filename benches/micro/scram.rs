//! What a login costs: the proof of a client that knows the password.

use std::hint::black_box;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tidegate::postgres::scram::{Binding, Exchange, Verifier};
use tokio::runtime::Runtime;

use super::{Case, Operation};

pub(crate) const CASES: [Case; 1] =
    [Case { name: "postgres: a SCRAM proof is verified", prepare: verification }];

const NONCE: [u8; 18] = [7; 18];

fn verification(_: &Runtime) -> Operation {
    let verifier = Verifier::of("secret", "ann", &[5; 32]);
    // The library's own nonce is random, ours is not: so its words are right each time.
    let mut client = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    let client_first = client.message().to_vec();
    let (_, first) = begin(&verifier, &client_first);
    client.update(first.as_bytes()).unwrap();
    let client_final = client.message().to_vec();
    Box::new(move || {
        let (exchange, _) = begin(&verifier, &client_first);
        black_box(exchange.finish(&client_final).unwrap());
    })
}

fn begin<'a>(verifier: &'a Verifier, client_first: &[u8]) -> (Exchange<'a>, String) {
    Exchange::begin(verifier, client_first, &NONCE, Binding::Unavailable).unwrap()
}
