import { ethereum } from "@graphprotocol/graph-ts";

// The rows are loaded by SQL; indexing only has to reach the head.
export function handleBlock(_block: ethereum.Block): void {}
