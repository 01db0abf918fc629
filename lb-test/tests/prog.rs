//! Every case of a packet and its fate, judged by the programs in this machine's kernel.

use lb_ebpf::cases::{self, Net};
use lb_test::{prog::KernelBench, require_topology};

macro_rules! in_a_kernel {
    ($($module:ident::$name:ident,)+) => {
        $(#[test]
        fn $name() {
            require_topology!();
            run(cases::$module::$name);
        })+
    };
}
lb_ebpf::each_case!(in_a_kernel);

fn run(case: fn(&mut Net<'_>)) {
    let mut bench = KernelBench::start().unwrap_or_else(|error| panic!("{error:#}"));
    cases::run(case, &mut bench);
}
