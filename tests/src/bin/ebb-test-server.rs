//! The server of a lab's backend, in a process of its own. The tests start it; see `traffic::Server::start_apart`.

fn main() -> anyhow::Result<()> {
    ebb_tests::traffic::serve_requests(std::env::args().skip(1))
}
