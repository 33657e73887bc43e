using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>
/// One connection of a simulated initiator: PDUs onto the wire and from it, digests, and the numbers that a target counts
/// on each connection. What it receives in full feature phase it gives to its session.
/// </summary>
internal sealed class SimLink(SessionSimulation world, SimSession session, SimConnection wire, ushort cid)
{
    private readonly Queue<byte[]> _out = new();
    private bool _isSending, _hasHeaderDigest, _hasDataDigest;
    private uint _lastMaxCmdSn;

    public delegate void WriteBhs(Span<byte> bhs);

    public SimConnection Wire { get; } = wire;

    public ushort Cid { get; } = cid;

    public bool IsDead { get; private set; }

    public uint ExpStatSn { get; private set; }

    /// <summary>It is to be closed by whoever gets there first: an end of the stream is no fault.</summary>
    public bool IsLeaving { get; set; }

    /// <summary>Queues a PDU; PDUs that wait together leave together.</summary>
    public void Send(WriteBhs write, ReadOnlySpan<byte> data = default)
    {
        if (IsDead) return;
        _out.Enqueue(Pdu(write, data));
        if (!_isSending) world.Spawn(SendAllAsync);
    }

    /// <summary>The same bytes once more, as if the initiator had not been sure.</summary>
    public void SendTwice(WriteBhs write, ReadOnlySpan<byte> data)
    {
        byte[] pdu = Pdu(write, data);
        _out.Enqueue(pdu);
        _out.Enqueue(pdu);
        if (!_isSending) world.Spawn(SendAllAsync);
    }

    /// <summary>Runs the login; its status, or null when the connection ended.</summary>
    public async Task<LoginResponsePdu?> LoginAsync(ushort tsih, uint cmdSn, bool isLeading)
    {
        SessionKeys keys = session.Keys;
        string names = $"InitiatorName={session.InitiatorName}\0TargetName={SessionSimulation.TargetName}\0";
        var stages = new List<(IscsiStage Current, IscsiStage Next, string Text)>();
        if (keys.HasSecurityStage) stages.Add((IscsiStage.Security, IscsiStage.Operational, names + "AuthMethod=None\0"));
        string operational = (keys.HasSecurityStage ? "" : names) + keys.Offer(isLeading);
        stages.Add((IscsiStage.Operational, IscsiStage.FullFeature, operational));
        var agreed = new Dictionary<string, string>(StringComparer.Ordinal);
        LoginResponsePdu response = default;
        foreach ((IscsiStage current, IscsiStage next, string text) in stages)
        {
            var request = new LoginRequestPdu(true, false, current, next, 0, session.Isid, tsih, 7, Cid, cmdSn, ExpStatSn);
            Send(b => request.WriteTo(b, 0), Encoding.UTF8.GetBytes(text));
            (byte[] Bhs, byte[] Data)? pdu = await ReadAsync();
            if (pdu is null) return null;
            if (IscsiHeader.Read(pdu.Value.Bhs).Opcode != IscsiOpcode.LoginResponse)
            {
                Wrong("a login was answered with another PDU");
                return null;
            }

            response = LoginResponsePdu.Read(pdu.Value.Bhs);
            if (response.Status != IscsiLoginStatus.Success) return response;
            ExpStatSn = response.Numbers.StatSn + 1;
            foreach (string pair in Encoding.UTF8.GetString(pdu.Value.Data).Split('\0', StringSplitOptions.RemoveEmptyEntries))
                agreed[pair[..pair.IndexOf('=', StringComparison.Ordinal)]] = pair[(pair.IndexOf('=', StringComparison.Ordinal) + 1)..];
            if (!response.IsTransit || response.Next != next || response.Isid != session.Isid)
                Wrong($"the login stays in stage {response.Next}");
        }

        if (keys.Agree(agreed, isLeading) is { } fault) Wrong(fault);
        (_hasHeaderDigest, _hasDataDigest) = (keys.HeaderDigest, keys.DataDigest);
        return response;
    }

    /// <summary>Reads until the connection ends.</summary>
    public async Task ServeAsync()
    {
        while (await ReadAsync() is { } pdu)
        {
            world.Trace(session, this, "<", pdu.Bhs);
            Count(pdu.Bhs);
            session.Take(this, pdu.Bhs, pdu.Data);
        }

        Die();
    }

    /// <summary>Closes this end.</summary>
    public void Die()
    {
        if (IsDead) return;
        IsDead = true;
        Wire.Close();
        session.OnDead(this);
    }

    private byte[] Pdu(WriteBhs write, ReadOnlySpan<byte> data)
    {
        int pad = IscsiWire.PadOf(data.Length);
        int headDigest = _hasHeaderDigest ? 4 : 0, dataDigest = _hasDataDigest && data.Length > 0 ? 4 : 0;
        var pdu = new byte[IscsiWire.BhsSize + headDigest + data.Length + pad + dataDigest];
        write(pdu.AsSpan(0, IscsiWire.BhsSize));
        IscsiHeader.SetDataBytes(pdu, data.Length);
        world.Trace(session, this, ">", pdu.AsSpan(0, IscsiWire.BhsSize));
        int at = IscsiWire.BhsSize;
        if (headDigest > 0) BinaryPrimitives.WriteUInt32LittleEndian(pdu.AsSpan(at), Crc32C.Compute(pdu.AsSpan(0, at)));
        at += headDigest;
        data.CopyTo(pdu.AsSpan(at));
        if (dataDigest > 0)
        {
            uint digest = Crc32C.Compute(pdu.AsSpan(at, data.Length + pad));
            BinaryPrimitives.WriteUInt32LittleEndian(pdu.AsSpan(at + data.Length + pad), digest);
        }

        return pdu;
    }

    private async Task SendAllAsync()
    {
        _isSending = true;
        var batch = new SendBatch();
        while (_out.Count > 0 && !IsDead)
        {
            batch.Clear();
            while (!batch.IsFull && _out.TryDequeue(out byte[]? pdu)) batch.Add(pdu);
            if (await Wire.SendAsync(batch) < 0) break; // the reader meets the same end, after what has arrived
        }

        _isSending = false;
    }

    private async Task<(byte[] Bhs, byte[] Data)?> ReadAsync()
    {
        var bhs = new byte[IscsiWire.BhsSize];
        if (!await Wire.FillAsync(bhs)) return null;
        var digest = new byte[IscsiWire.DigestSize];
        if (_hasHeaderDigest)
        {
            if (!await Wire.FillAsync(digest)) return null;
            if (BinaryPrimitives.ReadUInt32LittleEndian(digest) != Crc32C.Compute(bhs)) return Mangled();
        }

        IscsiHeader header = IscsiHeader.Read(bhs);
        if (header.AhsBytes != 0 || header.DataBytes > Math.Max(session.Keys.MaxReceive, 8192))
        {
            Wrong($"a PDU of {header.DataBytes} bytes where {session.Keys.MaxReceive} were declared");
            return null;
        }

        if (header.DataBytes == 0) return (bhs, []);
        var data = new byte[header.PaddedDataBytes];
        if (!await Wire.FillAsync(data)) return null;
        if (_hasDataDigest)
        {
            if (!await Wire.FillAsync(digest)) return null;
            if (BinaryPrimitives.ReadUInt32LittleEndian(digest) != Crc32C.Compute(data)) return Mangled();
        }

        if (data.AsSpan(header.DataBytes).ContainsAnyExcept((byte)0)) Wrong("padding is not zero");
        return (bhs, data[..header.DataBytes]);
    }

    private (byte[] Bhs, byte[] Data)? Mangled()
    {
        if (Wire.FlipsByte < 0) Wrong("a digest of the target does not match");
        return null;
    }

    /// <summary>StatSN goes up by one with every status; on one connection the window never shrinks.</summary>
    private void Count(byte[] bhs)
    {
        IscsiHeader header = IscsiHeader.Read(bhs);
        IscsiNumbers numbers = IscsiNumbers.Read(bhs);
        bool isData = header.Opcode == IscsiOpcode.DataIn && (header.Flags & 1) == 0;
        bool isStatus = !isData && header.Opcode != IscsiOpcode.R2T
            && !(header.Opcode == IscsiOpcode.NopIn && header.InitiatorTaskTag == IscsiWire.NoTag);
        if (!isData && numbers.StatSn != ExpStatSn) Wrong($"StatSN {numbers.StatSn} in {header.Opcode}, expected {ExpStatSn}");
        if (isStatus) ExpStatSn++;
        if (_lastMaxCmdSn != 0 && IscsiWire.IsBefore(numbers.MaxCmdSn, _lastMaxCmdSn))
            Wrong($"MaxCmdSN fell from {_lastMaxCmdSn} to {numbers.MaxCmdSn}");
        _lastMaxCmdSn = numbers.MaxCmdSn;
        session.NoteWindow(numbers);
    }

    private void Wrong(string what) => world.Violate(ViolationKind.WrongProtocol, $"{session.InitiatorName} connection {Cid}: {what}");
}
