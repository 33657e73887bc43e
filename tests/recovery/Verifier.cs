using System.Buffers.Binary;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using BlockServer.Tests.Running;

namespace BlockServer.Tests.Recovery;

/// <summary>
/// Writes sectors that say which sector and which operation they are, over four connections at once (of which kind says
/// <paramref name="wire"/>),
/// and knows for every sector what a killed daemon may leave: the last acknowledged value, or the one request that was
/// under way. A request that was under way is there whole or not at all: none here is larger than 1 MiB.
/// Every connection owns its sectors, so the writes to one sector are ordered, but one block has several owners in half
/// of the volume: merging parts of a block is part of the load, as are holes, trims, FUA, flushes and reading back.
/// </summary>
/// <param name="volume">The export.</param>
/// <param name="blocks">Its size in blocks of 4 KiB; a multiple of 8.</param>
/// <param name="wire">What the load goes over; it is verified over the first of its kinds.</param>
internal sealed class Verifier(string volume, int blocks, Wire wire = Wire.Nbd)
{
    public const int BlockSize = 4096;
    private const int SectorSize = 512, SectorsPerBlock = BlockSize / SectorSize, SectorsMax = 2048;
    private const int Connections = 4, Depth = 16;

    /// <summary>Sectors of one owner in the shared half: no multiple of a block, so that blocks have two owners.</summary>
    private const int Stripe = 20;

    /// <summary>NBD's error ESHUTDOWN: the request was refused because the server goes away.</summary>
    private const uint ShuttingDown = 108;

    private readonly ulong[] _must = new ulong[blocks * SectorsPerBlock]; // newest acknowledged value; 0 reads as zeroes
    private readonly ulong[] _may = new ulong[blocks * SectorsPerBlock]; // the value of the request under way
    private readonly bool[] _isOpen = new bool[blocks * SectorsPerBlock]; // a request is under way
    private readonly List<Request>[] _underWay = [.. Enumerable.Range(0, Connections).Select(_ => new List<Request>())];
    private long _acknowledged, _flushes;
    private long _op;
    private volatile bool _isStopping;

    /// <summary>Requests that changed something and were acknowledged, in all runs.</summary>
    public long Acknowledged => Volatile.Read(ref _acknowledged);

    /// <summary>Flushes that were acknowledged, in all runs.</summary>
    public long Flushes => Volatile.Read(ref _flushes);

    /// <summary>Starts the load; it ends when the server goes away. Await the task for the errors that are none of a crash.</summary>
    public Task Load(DaemonProcess daemon, int seed)
    {
        // Their answers would be waited for on connections that never sent them.
        if (_underWay.Any(list => list.Count > 0))
            throw new InvalidOperationException("requests of the last load are unsettled: call Verify first");
        _isStopping = false;
        return Task.WhenAll(Enumerable.Range(0, Connections).Select(c => Task.Factory.StartNew(
            () => Work(daemon, c, new Random((seed * 31) + c)), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default)));
    }

    /// <summary>From now on a lost connection is the end that the test made.</summary>
    public void ExpectEnd() => _isStopping = true;

    /// <summary>Waits until at least <paramref name="more"/> requests were acknowledged from now on, or the load ended.</summary>
    public async Task MakeProgress(Task load, int more)
    {
        for (long goal = Acknowledged + more; Acknowledged < goal && !load.IsCompleted;) await Task.Delay(2);
        if (load.IsCompleted) await load;
    }

    /// <summary>
    /// Reads every sector and throws <see cref="InvalidDataException"/> when one holds what it must not. What is found is
    /// what must last from now on.
    /// </summary>
    public void Verify(DaemonProcess daemon)
    {
        using IDiskClient client = Connect(daemon, 0);
        var found = new ulong[_must.Length];
        const int chunk = 2048;
        for (int first = 0; first < found.Length; first += chunk)
        {
            int count = Math.Min(chunk, found.Length - first);
            if (!client.TryReadRange((long)first * SectorSize, count * SectorSize, out byte[] data, out uint error))
                throw new InvalidDataException($"a read at sector {first} failed with {error}");
            for (int i = 0; i < count; i++)
            {
                int sector = first + i;
                ulong op = found[sector] = OperationIn(sector, data.AsSpan(i * SectorSize, SectorSize));
                if (op == _must[sector] || (_isOpen[sector] && op == _may[sector])) continue;
                string open = _isOpen[sector] ? _may[sector].ToString(CultureInfo.InvariantCulture) : "nothing";
                throw new InvalidDataException($"sector {sector} holds operation {op}, but {_must[sector]} was acknowledged and then {open} sent");
            }
        }

        foreach (Request request in _underWay.SelectMany(list => list)) MustBeWhole(request, found);
        foreach (List<Request> list in _underWay) list.Clear();
        found.CopyTo(_must, 0);
        Array.Clear(_isOpen);
    }

    /// <summary>Writes every sector once, so that no sector may read as zeroes. No load may be running.</summary>
    public void WriteAll(DaemonProcess daemon)
    {
        using IDiskClient client = Connect(daemon, 0);
        byte[] data = new byte[SectorsMax * SectorSize];
        for (int first = 0; first < _must.Length; first += SectorsMax)
        {
            ulong op = (ulong)Interlocked.Increment(ref _op);
            Fill(data, first, SectorsMax, op);
            Write(client, first, data);
            Array.Fill(_must, op, first, SectorsMax);
        }
    }

    /// <summary>For tests of the verifier: notes a request of <paramref name="count"/> sectors as under way, of which
    /// the server gets only a part.</summary>
    public void WriteUnanswered(DaemonProcess daemon, int first, int count, int partFirst, int partCount)
    {
        ulong op = (ulong)Interlocked.Increment(ref _op);
        Array.Fill(_may, op, first, count);
        Array.Fill(_isOpen, true, first, count);
        _underWay[0].Add(new Request(first, count, DiskCommand.Write));
        byte[] data = new byte[partCount * SectorSize];
        Fill(data, partFirst, partCount, op);
        using IDiskClient client = Connect(daemon, 0);
        if (partCount > 0) Write(client, partFirst, data);
    }

    private static void Write(IDiskClient client, int first, byte[] data)
    {
        client.Send(DiskCommand.Write, false, false, 1, (long)first * SectorSize, data.Length, data);
        if (client.Receive().Error is not 0 and uint error) throw new InvalidDataException($"a write failed with {error}");
    }

    private void MustBeWhole(Request request, ulong[] found)
    {
        // A sector that held the same before tells nothing.
        int[] telling = [.. Enumerable.Range(request.First, request.Count).Where(s => _must[s] != _may[s])];
        int there = telling.Count(s => found[s] == _may[s]);
        if (there != 0 && there != telling.Length)
            throw new InvalidDataException($"{request} is there with {there} of {telling.Length} sectors");
    }

    private static ulong OperationIn(int sector, ReadOnlySpan<byte> data)
    {
        ulong op = BinaryPrimitives.ReadUInt64LittleEndian(data[8..]);
        Span<byte> whole = stackalloc byte[SectorSize];
        Fill(whole, sector, 1, op);
        return data.SequenceEqual(whole)
            ? op
            : throw new InvalidDataException(
                $"sector {sector} holds a mixture or a stranger: it says {BinaryPrimitives.ReadUInt64LittleEndian(data)}, operation {op}");
    }

    private void Work(DaemonProcess daemon, int connection, Random random)
    {
        try
        {
            using IDiskClient client = Connect(daemon, connection);
            byte[] data = new byte[SectorsMax * SectorSize];
            while (true)
            {
                Batch(client, connection, random, data);
                if (random.Next(3) == 0) ReadBack(client, connection, random);
                if (random.Next(6) == 0) Flush(client);
            }
        }
        catch (Exception gone) when (_isStopping && gone is IOException or SocketException)
        {
            // The end that the test made.
        }
    }

    // Sends requests on distinct sectors of this connection, then takes all replies in whatever order they come.
    private void Batch(IDiskClient client, int connection, Random random, byte[] data)
    {
        List<Request> sent = _underWay[connection];
        var busy = new HashSet<int>();
        for (int i = 0; i < Depth; i++)
        {
            (int first, int count) = Pick(connection, random);
            DiskCommand command = random.Next(16) switch { 0 => DiskCommand.WriteZeroes, 1 => DiskCommand.Trim, _ => DiskCommand.Write };
            if (command == DiskCommand.Trim)
            {
                // What a trim leaves of a part of a block is the server's choice: only whole blocks are asked for.
                int end = (first + count) / SectorsPerBlock * SectorsPerBlock;
                first = (first + SectorsPerBlock - 1) / SectorsPerBlock * SectorsPerBlock;
                count = end - first;
            }

            if (count <= 0 || Enumerable.Range(first, count).Any(busy.Contains)) continue;
            busy.UnionWith(Enumerable.Range(first, count));
            ulong op = command == DiskCommand.Write ? (ulong)Interlocked.Increment(ref _op) : 0;
            Array.Fill(_may, op, first, count);
            Array.Fill(_isOpen, true, first, count);
            int length = count * SectorSize;
            if (command == DiskCommand.Write) Fill(data.AsSpan(0, length), first, count, op);
            bool isFua = random.Next(10) == 0, noHole = command == DiskCommand.WriteZeroes && random.Next(2) == 0;
            sent.Add(new Request(first, count, command));
            client.Send(
                command, isFua, noHole, (ulong)(sent.Count - 1), (long)first * SectorSize, length,
                command == DiskCommand.Write ? data.AsSpan(0, length) : default);
        }

        bool isRefused = false;
        for (int i = 0; i < sent.Count; i++)
        {
            (ulong cookie, uint error) = ReceiveOf(client, connection);
            if (error == ShuttingDown && _isStopping)
            {
                isRefused = true;
                continue;
            }

            if (error != 0) throw new InvalidDataException($"a request failed with {error}");
            (int first, int count, _) = sent[(int)cookie];
            Array.Copy(_may, first, _must, first, count);
            Array.Fill(_isOpen, false, first, count);
            Interlocked.Increment(ref _acknowledged);
        }

        if (isRefused) throw new IOException("the server goes away");
        sent.Clear();
    }

    // A server that does not answer is worth knowing exactly: which requests it owes.
    private (ulong Cookie, uint Error) ReceiveOf(IDiskClient client, int connection)
    {
        try
        {
            return client.Receive();
        }
        catch (IOException e) when (!_isStopping)
        {
            string owed = string.Join(", ", _underWay[connection].Where(r => _isOpen[r.First]));
            throw new InvalidDataException($"connection {connection} got no answer ({e.Message}) to: {owed}", e);
        }
    }

    private void Flush(IDiskClient client)
    {
        client.Send(DiskCommand.Flush, false, false, 99, 0, 0, default);
        (_, uint error) = client.Receive();
        if (error == ShuttingDown && _isStopping) throw new IOException("the server goes away");
        if (error != 0) throw new InvalidDataException($"a flush failed with {error}");
        Interlocked.Increment(ref _flushes);
    }

    private void ReadBack(IDiskClient client, int connection, Random random)
    {
        (int first, int count) = Pick(connection, random);
        if (!client.TryReadRange((long)first * SectorSize, count * SectorSize, out byte[] data, out uint error))
        {
            throw error == ShuttingDown && _isStopping
                ? new IOException("the server goes away") : new InvalidDataException($"a read failed with {error}");
        }

        for (int i = 0; i < count; i++)
        {
            ulong op = OperationIn(first + i, data.AsSpan(i * SectorSize, SectorSize));
            if (op != _must[first + i])
                throw new InvalidDataException($"sector {first + i} reads as operation {op}, but {_must[first + i]} was acknowledged");
        }
    }

    // A range that this connection owns: stripes that share blocks in the first half of the volume, long ranges in the second.
    private (int First, int Count) Pick(int connection, Random random)
    {
        int half = _must.Length / 2;
        if (random.Next(2) == 0)
        {
            int stripes = half / (Stripe * Connections);
            int start = ((random.Next(stripes) * Connections) + connection) * Stripe;
            int offset = random.Next(Stripe);
            return (start + offset, 1 + random.Next(Stripe - offset));
        }

        int share = half / Connections / SectorsPerBlock * SectorsPerBlock;
        int most = random.Next(32) == 0 ? SectorsMax : random.Next(4) == 0 ? 8 * SectorsPerBlock : SectorsPerBlock;
        int count = Math.Min(share, (1 + random.Next(most / SectorsPerBlock)) * SectorsPerBlock);
        return (half + (connection * share) + (random.Next(((share - count) / SectorsPerBlock) + 1) * SectorsPerBlock), count);
    }

    private static void Fill(Span<byte> target, int sector, int count, ulong op)
    {
        if (op == 0)
        {
            target.Clear();
            return;
        }

        for (int i = 0; i < count * SectorSize; i += 16)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(target[i..], (ulong)(sector + (i / SectorSize)));
            BinaryPrimitives.WriteUInt64LittleEndian(target[(i + 8)..], op);
        }
    }

    /// <summary>The first is of the kind that is verified over.</summary>
    private IDiskClient Connect(DaemonProcess daemon, int connection)
    {
        bool isIscsi = wire == Wire.Iscsi || (wire == Wire.Both && connection % 2 == 0), isUnix = !isIscsi && connection % 2 == 0;
        Socket socket = isUnix
            ? new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified)
            : new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        socket.ReceiveTimeout = 20_000;
        socket.Connect(isUnix ? new UnixDomainSocketEndPoint(daemon.Socket) : new IPEndPoint(IPAddress.Loopback, isIscsi ? daemon.IscsiPort : daemon.Port));
        return isIscsi ? new IscsiInitiator(socket, "iqn.2026-11.org.blockserver:" + volume, connection) : new NbdClient(socket, volume);
    }

    private readonly record struct Request(int First, int Count, DiskCommand Command);
}
