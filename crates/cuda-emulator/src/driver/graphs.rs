//! Graphs of copies: as much as a test of a read-only mapping needs.

use super::abi::{In, Memcpy3d, Out, code};
use super::calls::driver_calls;
use super::queue::{Place, Work};
use super::{Graph, State};
use crate::report::Kind;

impl State {
    fn graph_place(kind: u32, host: u64, device: u64) -> Result<Place, u32> {
        match kind {
            // Memory of the host must stay as it is until the graph has run, so it is read when it does.
            1 => Ok(Place::Host(host)),
            2 | 4 => Ok(Place::Known(device)),
            _ => Err(code::NOT_SUPPORTED),
        }
    }
}

driver_calls! {
    /// Makes an empty graph.
    fn cuGraphCreate(state, graph: Out<u64>, flags: u32) {
        let device = state.device()?;
        if flags != 0 || graph.0.is_null() {
            return Err(code::INVALID_VALUE);
        }
        let handle = state.fresh_handle();
        let origin = state.origin(device);
        state.graphs.insert(handle, (origin, Graph::default()));
        graph.set(handle)
    }

    /// Lets a graph go.
    fn cuGraphDestroy(state, graph: u64) release(graph) {
        state.device()?;
        if state.graphs.remove(&graph).is_none() {
            return Err(state.unknown(graph, Kind::Graph, true));
        }
        state.gone.insert((Kind::Graph, graph));
        Ok(())
    }

    /// Adds a copy of one row after those that are in it.
    fn cuGraphAddMemcpyNode(
        state, node: Out<u64>, graph: u64, needs: In<u64>, needed: usize, copy: In<Memcpy3d>, context: u64,
    ) {
        state.device()?;
        // Nodes run in the order in which they were added, which keeps every order that can be asked for.
        let _ = (needs, needed);
        if !state.contexts.contains_key(&context) {
            return Err(state.unknown(context, Kind::Context, false));
        }
        let copy = copy.get()?;
        if copy.height != 1 || copy.depth != 1 || copy.src_place[1..] != [0; 3] || copy.dst_place[1..] != [0; 3] {
            return Err(code::NOT_SUPPORTED);
        }
        let from = State::graph_place(
            copy.src_memory_type,
            copy.src_host + copy.src_place[0] as u64,
            copy.src_device + copy.src_place[0] as u64,
        )?;
        let to = State::graph_place(
            copy.dst_memory_type,
            copy.dst_host + copy.dst_place[0] as u64,
            copy.dst_device + copy.dst_place[0] as u64,
        )?;
        let handle = state.fresh_handle();
        let Some((_, known)) = state.graphs.get_mut(&graph) else {
            return Err(state.unknown(graph, Kind::Graph, false));
        };
        known.work.push(Work::Copy { to, from, bytes: copy.width as u64, by: "cuGraphLaunch" });
        node.set(handle)
    }

    /// Makes a graph that can run.
    fn cuGraphInstantiateWithFlags(state, exec: Out<u64>, graph: u64, flags: u64) {
        let device = state.device()?;
        let _ = flags;
        let Some((_, known)) = state.graphs.get(&graph) else {
            return Err(state.unknown(graph, Kind::Graph, false));
        };
        let copy = known.clone();
        let handle = state.fresh_handle();
        let origin = state.origin(device);
        exec.set(handle)?;
        state.graph_execs.insert(handle, (origin, copy));
        Ok(())
    }

    /// Lets it go.
    fn cuGraphExecDestroy(state, exec: u64) release(exec) {
        state.device()?;
        if state.graph_execs.remove(&exec).is_none() {
            return Err(state.unknown(exec, Kind::GraphExec, true));
        }
        state.gone.insert((Kind::GraphExec, exec));
        Ok(())
    }

    /// Runs it in a stream.
    fn cuGraphLaunch(state, exec: u64, stream: u64) {
        let stream = state.stream(stream)?;
        let Some((_, graph)) = state.graph_execs.get(&exec) else {
            return Err(state.unknown(exec, Kind::GraphExec, false));
        };
        for work in graph.work.clone() {
            state.enqueue(stream, work)?;
        }
        Ok(())
    }
}
