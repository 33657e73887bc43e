using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;
using BlockServer.Tests.Running;

namespace BlockServer.Tests.Recovery;

/// <summary>
/// Writes blocks that say which block and which operation they are, over many connections, and knows for every block
/// which values a crash may leave: the last one that was promised to last, or any that was sent after it.
/// Every connection owns its blocks, so the writes to one block are ordered; a flush on any connection covers all.
/// </summary>
internal sealed class Verifier(string volume, int blocks, bool durableWhenAcknowledged)
{
    public const int BlockSize = 4096;
    private const int Connections = 4, Depth = 8;

    // Values that block i may hold: [0] is the newest promised one, what follows was sent later. Zero means "reads as zeroes".
    private readonly List<ulong>[] _may = [.. Enumerable.Range(0, blocks).Select(_ => new List<ulong> { 0 })];
    private readonly ulong[] _acknowledged = new ulong[blocks]; // newest acknowledged entry's position in _may
    // How many entries were dropped from the front of _may[b] in all, so that a position stays valid across promises.
    private readonly ulong[] _serial = new ulong[blocks];
    private readonly Lock _lock = new();
    private ulong _op;
    private volatile bool _stop;

    /// <summary>Operations that the server acknowledged in all runs.</summary>
    public long Acknowledged { get; private set; }

    /// <summary>Flushes that the server acknowledged in all runs.</summary>
    public long Flushes { get; private set; }

    /// <summary>Starts the load; it ends when the server goes away. Await the task for the errors that are none of a crash.</summary>
    public Task Load(DaemonProcess daemon, int seed)
    {
        _stop = false;
        return Task.WhenAll(Enumerable.Range(0, Connections).Select(c => Task.Factory.StartNew(
            () => Work(daemon, c, new Random(seed * 31 + c)), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default)));
    }

    /// <summary>From now on a lost connection is the crash that the test made.</summary>
    public void ExpectCrash() => _stop = true;

    /// <summary>Reads every block and throws when one holds what it must not. What is found is what must last from now on.</summary>
    public void Verify(DaemonProcess daemon)
    {
        using NbdClient client = new(Connect(daemon, unix: true), volume);
        const int chunk = 256;
        for (int first = 0; first < blocks; first += chunk)
        {
            int count = Math.Min(chunk, blocks - first);
            byte[] data = client.ReadRange((long)first * BlockSize, count * BlockSize);
            for (int i = 0; i < count; i++)
            {
                Check(first + i, data.AsSpan(i * BlockSize, BlockSize));
            }
        }
    }

    private void Check(int block, ReadOnlySpan<byte> data)
    {
        ulong tag = BinaryPrimitives.ReadUInt64LittleEndian(data);
        ulong op = BinaryPrimitives.ReadUInt64LittleEndian(data[8..]);
        if (data[16..].IndexOfAnyExcept((byte)0) >= 0 || op != 0)
        {
            byte[] whole = new byte[BlockSize];
            Fill(whole, (int)tag, op);
            if (tag != (ulong)block || !data.SequenceEqual(whole))
            {
                throw new InvalidDataException($"block {block} holds a mixture or a stranger: tag {tag}, operation {op}");
            }
        }

        List<ulong> may = _may[block];
        if (!may.Contains(op))
        {
            throw new InvalidDataException(
                $"block {block} holds operation {op}, but was promised {may[0]} and then sent [{string.Join(' ', may.Skip(1))}]");
        }

        may.Clear();
        may.Add(op);
        _acknowledged[block] = 0;
    }

    private void Work(DaemonProcess daemon, int connection, Random random)
    {
        try
        {
            using NbdClient client = new(Connect(daemon, connection % 2 == 0), volume);
            byte[] data = new byte[8 * BlockSize];
            while (true)
            {
                Batch(client, connection, random, data);
            }
        }
        catch (Exception gone) when (_stop && gone is IOException or SocketException)
        {
            // The crash that the test made.
        }
    }

    // Sends up to Depth requests on distinct ranges of this connection, then takes all replies in whatever order they come.
    private void Batch(NbdClient client, int connection, Random random, byte[] data)
    {
        int share = blocks / Connections;
        List<(int First, int Count, bool Durable)> sent = [];
        HashSet<int> busy = [];
        for (int i = 0; i < Depth; i++)
        {
            int count = 1 + random.Next(random.Next(4) == 0 ? 8 : 1);
            int first = (connection * share) + random.Next(share - count + 1);
            if (Enumerable.Range(first, count).Any(busy.Contains))
            {
                continue;
            }

            busy.UnionWith(Enumerable.Range(first, count));
            bool zero = random.Next(12) == 0;
            bool fua = random.Next(10) == 0;
            lock (_lock)
            {
                for (int b = 0; b < count; b++)
                {
                    ulong op = zero ? 0 : ++_op;
                    _may[first + b].Add(op);
                    Fill(data.AsSpan(b * BlockSize, BlockSize), first + b, op);
                }
            }

            int length = count * BlockSize;
            client.Send(
                zero ? NbdClient.WriteZeroes : NbdClient.Write, fua ? NbdClient.Fua : (ushort)0, (ulong)sent.Count,
                (long)first * BlockSize, length, zero ? default : data.AsSpan(0, length));
            sent.Add((first, count, fua || durableWhenAcknowledged));
        }

        for (int i = 0; i < sent.Count; i++)
        {
            (ulong cookie, uint error) = client.Receive();
            if (error != 0)
            {
                throw new InvalidDataException($"a write failed with {error}");
            }

            (int first, int count, bool durable) = sent[(int)cookie];
            lock (_lock)
            {
                Acknowledged++;
                for (int b = first; b < first + count; b++)
                {
                    _acknowledged[b] = (ulong)_may[b].Count - 1;
                    if (durable)
                    {
                        Promise(b, _acknowledged[b]);
                    }
                }
            }
        }

        if (random.Next(6) == 0)
        {
            // All that was acknowledged before the flush is sent, on whichever connection, must last once it is answered.
            ulong[] values;
            lock (_lock)
            {
                values = [.. _acknowledged.Select((at, b) => at == 0 ? 0 : _serial[b] + at)];
            }

            client.Send(NbdClient.Flush, 0, 99, 0, 0);
            (_, uint error) = client.Receive();
            if (error != 0)
            {
                throw new InvalidDataException($"a flush failed with {error}");
            }

            lock (_lock)
            {
                Flushes++;
                for (int b = 0; b < blocks; b++)
                {
                    if (values[b] > _serial[b])
                    {
                        Promise(b, values[b] - _serial[b]);
                    }
                }
            }
        }
    }

    private void Promise(int block, ulong position)
    {
        _may[block].RemoveRange(0, (int)position);
        _serial[block] += position;
        _acknowledged[block] -= position;
    }

    private static void Fill(Span<byte> block, int number, ulong op)
    {
        for (int i = 0; i < block.Length; i += 16)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(block[i..], op == 0 ? 0 : (ulong)number);
            BinaryPrimitives.WriteUInt64LittleEndian(block[(i + 8)..], op);
        }
    }

    private static Socket Connect(DaemonProcess daemon, bool unix)
    {
        Socket socket = unix
            ? new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified)
            : new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        socket.ReceiveTimeout = 20_000;
        socket.Connect(unix ? new UnixDomainSocketEndPoint(daemon.Socket) : new IPEndPoint(IPAddress.Loopback, daemon.Port));
        return socket;
    }
}
