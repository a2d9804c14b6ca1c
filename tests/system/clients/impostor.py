#!/usr/bin/env python3
"""A machine in the middle: TLS with a key of its own in front, an honest appliance behind.

It has everything but the appliance's key: the network, and even a client's certificate that the appliance accepts. What
clients send is relayed, answers included, and kept in a file, to be searched for what must not be there.
"""

import argparse
import asyncio
import ssl

# Bytes of one read.
CHUNK_BYTES = 64 << 10


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen) -> None:
    while data := await reader.read(CHUNK_BYTES):
        if seen is not None:
            seen.write(data)
            seen.flush()
        writer.write(data)
        await writer.drain()
    writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cert", required=True, help="PEM of the impostor's certificate")
    parser.add_argument("--key", required=True, help="PEM of its key")
    parser.add_argument("--client-cert", required=True, help="PEM of a client's certificate")
    parser.add_argument("--client-key", required=True, help="PEM of its key")
    parser.add_argument("--port", required=True, type=int, help="of the appliance, on loopback")
    parser.add_argument("--seen", required=True, help="file for what clients send")
    args = parser.parse_args()
    front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    front.load_cert_chain(args.cert, args.key)
    behind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    behind.check_hostname = False
    behind.verify_mode = ssl.CERT_NONE
    behind.load_cert_chain(args.client_cert, args.client_key)
    with open(args.seen, "wb") as seen:

        async def connection(reader, writer):
            try:
                appliance = await asyncio.open_connection("127.0.0.1", args.port, ssl=behind)
                await asyncio.gather(relay(reader, appliance[1], seen), relay(appliance[0], writer, None))
            except OSError as error:
                print(f"connection ended: {error}", flush=True)

        server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=front)
        print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


asyncio.run(main())
