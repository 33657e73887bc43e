using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>An NBD client of the volumes that the initiators work on: several requests at a time, cut off, and back again.</summary>
internal sealed class SimNbdClient(SessionSimulation world)
{
    private const int ConnectionsMax = 8;

    private readonly SeededRandom _dice = world.Dice;

    /// <summary>From its first connection to its last.</summary>
    public async Task LiveAsync()
    {
        for (int i = 0; i < ConnectionsMax && world.IsWorking; i++)
        {
            await world.Loop.DelayAsync(1 + _dice.NextBelow(3_000_000UL));
            SimUnit unit = world.Units[_dice.NextBelow(world.Units.Count)];
            (SimConnection wire, Func<bool> hasEnded) = world.ConnectNbd();
            var session = new SimNbdSession(world, unit, wire);
            if (await session.OpenAsync()) await UseAsync(session, unit);
            session.Close();
            if (wire.HasBroken) world.Counters[SessionDid.NbdCuts]++;

            // What was under way may happen until the server has let go of the connection.
            world.Spawn(async () =>
            {
                while (!hasEnded()) await world.Loop.DelayAsync(1_000_000);
                foreach (ModelWrite write in session.Unsettled) world.EndWrite(unit, write, isOk: false, isDurable: false);
            });
        }
    }

    private async Task UseAsync(SimNbdSession session, SimUnit unit)
    {
        world.Counters[SessionDid.NbdSessions]++;
        int running = 1 + _dice.NextBelow(6), left = 5 + _dice.NextBelow(40);
        for (int i = running; i > 0; i--)
        {
            world.Spawn(async () =>
            {
                while (!session.IsDead && world.IsWorking && left-- > 0) await RequestAsync(session, unit);
                running--;
            });
        }

        while (running > 0) await world.Loop.DelayAsync(100_000);
        if (!session.IsDead) session.Send(NbdCommand.Disconnect, 0, 0, 0, null);
    }

    private async Task RequestAsync(SimNbdSession session, SimUnit unit)
    {
        world.RequestsLeft--;
        int dice = _dice.NextBelow(100);
        ulong first = _dice.NextBelow(_dice.NextChance(0.6) ? 192 : unit.FreeSectors - 64), count = 1 + _dice.NextBelow(64UL);
        NbdCommandFlags flags = _dice.NextChance(0.15) ? NbdCommandFlags.Fua : 0;
        if (dice < 40)
        {
            ulong id = world.NextId();
            var data = new byte[count * Units.SectorBytes];
            VolumeModel.Fill(data, id, unit.Model.Head.Id, first);
            ModelWrite write = world.BeginWrite(unit, first, count, isZero: false, id);
            await ChangeAsync(session, unit, NbdCommand.Write, first, count, flags, data, write);
        }
        else if (dice < 75)
        {
            unit.Model.BeginRead();
            ulong start = world.Tick();
            NbdReplied replied = await session.AskAsync(NbdCommand.Read, first, count, 0, null);
            world.Tick();
            if (replied.Error is { } error) Expect(NbdCommand.Read, error);
            if (replied.IsOk && unit.Model.EndRead(first, replied.Data, start) is { } fault) world.Violate(fault);
            else if (replied.IsOk && unit.Model.JudgeSettled(first, replied.Data, start, world.Tick()) is { } late) world.Violate(late);
            unit.Model.ReadDone();
        }
        else if (dice < 90)
        {
            bool isTrim = dice < 82;
            if (isTrim) (first, count) = (first / 8 * 8, (count + 7) / 8 * 8);
            ModelWrite write = world.BeginWrite(unit, first, count, isZero: true, world.NextId());
            await ChangeAsync(session, unit, isTrim ? NbdCommand.Trim : NbdCommand.WriteZeroes, first, count, flags, null, write);
        }
        else
        {
            ulong start = world.Tick();
            NbdReplied replied = await session.AskAsync(NbdCommand.Flush, 0, 0, 0, null);
            world.Tick();
            if (replied.IsOk) unit.Model.Flushed(start);
        }
    }

    private async Task ChangeAsync(
        SimNbdSession session, SimUnit unit, NbdCommand command, ulong first, ulong count, NbdCommandFlags flags, byte[]? data, ModelWrite write)
    {
        NbdReplied replied = await session.AskAsync(command, first, count, flags, data);
        if (replied.IsOk) world.EndWrite(unit, write, isOk: true, isDurable: (flags & NbdCommandFlags.Fua) != 0);
        else if (replied.Error is null) session.Unsettled.Add(write);
        else
        {
            Expect(command, replied.Error.Value);
            world.NeverHappened(unit, write);
        }
    }

    private void Expect(NbdCommand command, NbdError error)
    {
        if (error is not (NbdError.None or NbdError.Shutdown)) world.Violate(ViolationKind.WrongAnswer, $"NBD {command} was answered {error}");
    }
}

/// <summary>A reply; without an error when the connection ended first.</summary>
internal sealed record NbdReplied(NbdError? Error, byte[] Data)
{
    public bool IsOk => Error == NbdError.None;
}

/// <summary>One NBD connection from the client's side.</summary>
internal sealed class SimNbdSession(SessionSimulation world, SimUnit unit, SimConnection wire)
{
    private readonly Dictionary<ulong, (LoopEvent<NbdReplied> Done, ulong Offset, byte[] Data)> _open = [];
    private readonly Queue<byte[]> _out = new();
    private NbdReplyMode _mode;
    private ulong _cookie;
    private bool _isSending;

    public bool IsDead { get; private set; }

    public List<ModelWrite> Unsettled { get; } = [];

    /// <summary>Shakes hands, in a drawn dialect.</summary>
    public async Task<bool> OpenAsync()
    {
        var greeting = new byte[18];
        if (!await wire.FillAsync(greeting)) return false;
        _mode = (NbdReplyMode)world.Dice.NextBelow(3);
        byte[] name = Encoding.UTF8.GetBytes(unit.Model.Head.Name);
        Queue([0, 0, 0, 3]);
        if (_mode != NbdReplyMode.Simple)
        {
            NbdOption option = _mode == NbdReplyMode.Extended ? NbdOption.ExtendedHeaders : NbdOption.StructuredReply;
            Queue(Option(option, []));
            if (!await AcknowledgedAsync()) return false;
        }

        var go = new byte[4 + name.Length + 2];
        BinaryPrimitives.WriteUInt32BigEndian(go, (uint)name.Length);
        name.CopyTo(go, 4);
        Queue(Option(NbdOption.Go, go));
        if (!await AcknowledgedAsync()) return false;
        world.Spawn(ReceiveAsync);
        return true;
    }

    public async Task<NbdReplied> AskAsync(NbdCommand command, ulong firstSector, ulong sectors, NbdCommandFlags flags, byte[]? data)
    {
        if (IsDead) return Lost;
        ulong offset = firstSector * Units.SectorBytes;
        var done = new LoopEvent<NbdReplied>();
        byte[] read = command == NbdCommand.Read ? new byte[sectors * Units.SectorBytes] : [];
        _open.Add(Send(command, offset, sectors * Units.SectorBytes, flags, data), (done, offset, read));
        return await done.WaitAsync();
    }

    public ulong Send(NbdCommand command, ulong offset, ulong length, NbdCommandFlags flags, byte[]? data)
    {
        if (_mode == NbdReplyMode.Extended && data is not null) flags |= NbdCommandFlags.PayloadLength;
        var head = new byte[NbdRequest.SizeIn(_mode)];
        new NbdRequest(command, flags, ++_cookie, offset, length).WriteTo(head, _mode);
        Queue([.. head, .. data ?? []]);
        return _cookie;
    }

    public void Close()
    {
        wire.Close();
        if (IsDead) return;
        IsDead = true;
        foreach (ulong cookie in _open.Keys.ToArray())
        {
            if (_open.Remove(cookie, out var entry)) entry.Done.Set(Lost);
        }
    }

    private static NbdReplied Lost { get; } = new(null, []);

    private static byte[] Option(NbdOption option, byte[] data)
    {
        var bytes = new byte[16 + data.Length];
        "IHAVEOPT"u8.CopyTo(bytes);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(8), (uint)option);
        BinaryPrimitives.WriteUInt32BigEndian(bytes.AsSpan(12), (uint)data.Length);
        data.CopyTo(bytes, 16);
        return bytes;
    }

    private async Task<bool> AcknowledgedAsync()
    {
        while (true)
        {
            var head = new byte[20];
            if (!await wire.FillAsync(head)) return false;
            var type = (NbdReply)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(12));
            if (!await wire.FillAsync(new byte[BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(16))])) return false;
            if (type == NbdReply.Ack) return true;
            if ((uint)type >= 0x80000000) return false;
        }
    }

    private async Task ReceiveAsync()
    {
        while (await ReceiveReplyAsync())
        {
        }

        Close();
    }

    private async Task<bool> ReceiveReplyAsync()
    {
        var head = new byte[_mode == NbdReplyMode.Extended ? 32 : 16];
        if (!await wire.FillAsync(head)) return false;
        uint magic = BinaryPrimitives.ReadUInt32BigEndian(head);
        if (magic == NbdWire.SimpleReplyMagic && _mode != NbdReplyMode.Extended)
        {
            ulong cookie = BinaryPrimitives.ReadUInt64BigEndian(head.AsSpan(8));
            if (!_open.TryGetValue(cookie, out var entry)) return Wrong($"a reply for cookie {cookie}");
            var error = (NbdError)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(4));
            if (error == NbdError.None && entry.Data.Length > 0 && !await wire.FillAsync(entry.Data)) return false;
            return Finish(cookie, new NbdReplied(error, entry.Data));
        }

        bool isExtended = _mode == NbdReplyMode.Extended;
        if (magic != (isExtended ? NbdWire.ExtendedReplyMagic : NbdWire.StructuredReplyMagic)) return Wrong($"magic {magic:X8}");
        if (!isExtended)
        {
            var rest = new byte[4];
            if (!await wire.FillAsync(rest)) return false;
            head = [.. head, .. rest];
        }

        return await TakeChunkAsync(head, isExtended);
    }

    private readonly Dictionary<ulong, NbdError> _errors = [];

    private async Task<bool> TakeChunkAsync(byte[] head, bool isExtended)
    {
        ulong cookie = BinaryPrimitives.ReadUInt64BigEndian(head.AsSpan(8));
        if (!_open.TryGetValue(cookie, out var entry)) return Wrong($"a chunk for cookie {cookie}");
        int length = isExtended
            ? (int)BinaryPrimitives.ReadUInt64BigEndian(head.AsSpan(24)) : (int)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(16));
        var type = (NbdChunk)BinaryPrimitives.ReadUInt16BigEndian(head.AsSpan(6));
        var payload = new byte[length];
        if (length > 0 && !await wire.FillAsync(payload)) return false;
        switch (type)
        {
            case NbdChunk.None:
                break;
            case NbdChunk.OffsetData:
                payload.AsSpan(8).CopyTo(entry.Data.AsSpan((int)(BinaryPrimitives.ReadUInt64BigEndian(payload) - entry.Offset)));
                break;
            case NbdChunk.OffsetHole:
                break; // zeros already
            default:
                _errors[cookie] = (NbdError)BinaryPrimitives.ReadUInt32BigEndian(payload);
                break;
        }

        bool isLast = (head[5] & 1) != 0;
        if (!isLast) return true;
        _errors.Remove(cookie, out NbdError error);
        return Finish(cookie, new NbdReplied(error, entry.Data));
    }

    private bool Finish(ulong cookie, NbdReplied replied)
    {
        world.Counters[SessionDid.NbdRequests]++;
        if (!_open.Remove(cookie, out var entry)) return Wrong($"a second reply for cookie {cookie}");
        entry.Done.Set(replied);
        return true;
    }

    private bool Wrong(string what)
    {
        world.Violate(ViolationKind.WrongProtocol, "NBD: " + what);
        return false;
    }

    private void Queue(byte[] bytes)
    {
        _out.Enqueue(bytes);
        if (!_isSending) world.Spawn(SendAllAsync);
    }

    private async Task SendAllAsync()
    {
        _isSending = true;
        var batch = new SendBatch();
        while (_out.Count > 0)
        {
            batch.Clear();
            while (!batch.IsFull && _out.TryDequeue(out byte[]? bytes)) batch.Add(bytes);
            if (await wire.SendAsync(batch) < 0) break;
        }

        _isSending = false;
    }
}
