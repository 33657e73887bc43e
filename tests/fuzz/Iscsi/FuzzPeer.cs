using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Fuzz.Iscsi;

/// <summary>
/// One connection of an initiator that logs in rightly and knows what its target expects next, so that its damaged PDUs get
/// far. It checks the frame of everything that comes back.
/// </summary>
internal sealed class FuzzPeer(SimLoop loop, SimConnection wire, string target, ulong isid, ushort cid)
{
    private bool _hasDigests;
    private uint _expStatSn;

    public delegate void WriteBhs(Span<byte> bhs);

    public ushort Tsih { get; private set; }

    public uint CmdSn { get; set; } = 1;

    public bool HasEnded { get; private set; }

    /// <summary>R2Ts that wait for their data.</summary>
    public List<R2TPdu> Asked { get; } = [];

    /// <summary>Answers that came, by tag; the last one of each.</summary>
    public Dictionary<uint, (IscsiOpcode Opcode, byte[] Bhs, byte[] Data)> Answers { get; } = [];

    /// <summary>What the target sent that no target may; null: nothing.</summary>
    public string? Fault { get; private set; }

    public async Task<bool> LoginAsync(ushort tsih, bool hasDigests, bool asksFirst)
    {
        string text = $"InitiatorName=iqn.2026-11.org.example:fuzz{isid}\0TargetName={target}\0"
            + $"HeaderDigest={(hasDigests ? "CRC32C" : "None")}\0DataDigest={(hasDigests ? "CRC32C" : "None")}\0MaxRecvDataSegmentLength=4096\0";
        if (tsih == 0)
            text += $"InitialR2T={(asksFirst ? "Yes" : "No")}\0ImmediateData=Yes\0MaxBurstLength=4096\0FirstBurstLength=2048\0MaxOutstandingR2T=4\0MaxConnections=4\0";
        var request = new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, isid, tsih, 1, cid, CmdSn, 0);
        Send(b => request.WriteTo(b, 0), Encoding.UTF8.GetBytes(text));
        if (await ReadAsync() is not { } answer) return false;
        LoginResponsePdu response = LoginResponsePdu.Read(answer.Bhs);
        _expStatSn = response.Numbers.StatSn + 1;
        (Tsih, _hasDigests) = (response.Tsih, hasDigests);
        return response.Status == IscsiLoginStatus.Success;
    }

    /// <summary>Reads to the end, answering pings.</summary>
    public async Task ServeAsync()
    {
        while (await ReadAsync() is { } pdu)
        {
            IscsiHeader header = IscsiHeader.Read(pdu.Bhs);
            bool isPing = header.Opcode == IscsiOpcode.NopIn && header.InitiatorTaskTag == IscsiWire.NoTag;
            if (header.Opcode == IscsiOpcode.R2T) Asked.Add(R2TPdu.Read(pdu.Bhs));
            else if (isPing) Send(b => new NopOutPdu(true, 0, IscsiWire.NoTag, NopInPdu.Read(pdu.Bhs).TransferTag, CmdSn, _expStatSn).WriteTo(b, 0), []);
            else Answers[header.InitiatorTaskTag] = (header.Opcode, pdu.Bhs, pdu.Data);
        }

        HasEnded = true;
    }

    /// <summary>A PDU as it goes onto the wire. <paramref name="damage"/> is done to the header before its digest is made,
    /// and <paramref name="damageDigests"/> says that the digests are damaged too.</summary>
    public byte[] Pdu(WriteBhs write, byte[] data, Action<byte[]>? damage = null, bool damageDigests = false)
    {
        var bhs = new byte[IscsiWire.BhsSize];
        write(bhs);
        IscsiHeader.SetDataBytes(bhs, data.Length);
        damage?.Invoke(bhs);
        byte[] padded = [.. data, .. new byte[IscsiWire.PadOf(data.Length)]];
        if (!_hasDigests) return [.. bhs, .. padded];
        byte[] head = Digest(bhs), body = data.Length > 0 ? Digest(padded) : [];
        if (damageDigests) head[0] ^= 1;
        return [.. bhs, .. head, .. padded, .. body];
    }

    public void Send(WriteBhs write, byte[] data) => SendRaw(Pdu(write, data));

    private readonly Queue<byte[]> _out = new();
    private bool _isSending;

    public void SendRaw(byte[] bytes)
    {
        _out.Enqueue(bytes);
        if (!_isSending) _ = SendAllAsync();
    }

    public void Close() => wire.Close();

    /// <summary>Runs until <paramref name="tag"/> was answered; false when the connection ended or nothing came.</summary>
    public bool WaitFor(uint tag) =>
        loop.RunUntil(() => Answers.ContainsKey(tag) || HasEnded || Fault is not null, 200_000) && Answers.ContainsKey(tag);

    private async Task SendAllAsync()
    {
        _isSending = true;
        var batch = new SendBatch();
        while (_out.TryDequeue(out byte[]? bytes))
        {
            batch.Clear();
            batch.Add(bytes);
            if (await wire.SendAsync(batch) < 0) break;
        }

        _isSending = false;
    }

    private async Task<(byte[] Bhs, byte[] Data)?> ReadAsync()
    {
        var bhs = new byte[IscsiWire.BhsSize];
        if (!await wire.FillAsync(bhs)) return null;
        var digest = new byte[4];
        if (_hasDigests && !await wire.FillAsync(digest)) return null;
        if (_hasDigests && !digest.AsSpan().SequenceEqual(Digest(bhs))) return Wrong("a header digest is wrong");
        IscsiHeader header = IscsiHeader.Read(bhs);
        if (((int)header.Opcode & 0x20) == 0 || header.AhsBytes != 0 || header.DataBytes > 8192) return Wrong($"a PDU {header}");
        var data = new byte[header.PaddedDataBytes];
        if (data.Length > 0 && !await wire.FillAsync(data)) return null;
        if (_hasDigests && data.Length > 0)
        {
            if (!await wire.FillAsync(digest)) return null;
            if (!digest.AsSpan().SequenceEqual(Digest(data))) return Wrong("a data digest is wrong");
        }

        if (header.Opcode is not (IscsiOpcode.DataIn or IscsiOpcode.R2T)) _expStatSn = IscsiNumbers.Read(bhs).StatSn + 1;
        return (bhs, data[..header.DataBytes]);
    }

    private (byte[] Bhs, byte[] Data)? Wrong(string what)
    {
        if (!wire.IsClosed) Fault ??= what;
        return null;
    }

    private static byte[] Digest(ReadOnlySpan<byte> bytes)
    {
        var digest = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(digest, Crc32C.Compute(bytes));
        return digest;
    }
}
