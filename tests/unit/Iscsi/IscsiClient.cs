using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>A PDU as a client sees it.</summary>
internal sealed record Received(byte[] Bhs, byte[] Data)
{
    public IscsiOpcode Opcode => (IscsiOpcode)(Bhs[0] & 0x3F);

    public string Text => Encoding.UTF8.GetString(Data);
}

/// <summary>Answer to a SCSI command, all of it.</summary>
internal sealed record ScsiAnswer(ScsiStatus Status, byte[] DataIn, byte[] Sense, Residual Residual);

/// <summary>A small initiator that can also do everything wrong. It checks every number that a target counts.</summary>
internal sealed class IscsiClient(IscsiWorld world, SimConnection connection, IscsiLogin login, Task<string> end)
{
    private uint _expStatSn;
    private bool _hasHeaderDigest, _hasDataDigest;

    public IscsiWorld World => world;

    public SimConnection Connection => connection;

    public IscsiLogin LoginOfServer => login;

    public bool HasEnded => end.IsCompleted;

    public uint CmdSn { get; set; } = 100;

    public uint MaxCmdSn { get; private set; }

    public uint ExpCmdSn { get; private set; }

    public uint Tag { get; set; } = 1;

    public ulong Isid { get; set; } = 0x00023D000001;

    public ushort Tsih { get; set; }

    public ushort Cid { get; set; }

    public Dictionary<string, string> Agreed { get; } = new(StringComparer.Ordinal);

    public bool InitialR2T { get; set; } = true;

    public bool ImmediateData { get; set; } = true;

    public int FirstBurst { get; set; } = 65536;

    public int MaxSegment { get; set; } = 8192;

    /// <summary>Data segments of Data-Out are no longer than this.</summary>
    public int PieceMax { get; set; } = int.MaxValue;

    public string End()
    {
        Check.That(world.Loop.RunUntil(() => end.IsCompleted));
        return end.GetAwaiter().GetResult();
    }

    public int SendRaw(params byte[][] parts)
    {
        var batch = new SendBatch();
        foreach (byte[] part in parts) batch.Add(part);
        return world.Loop.Run(connection.SendAsync(batch));
    }

    public delegate void WriteBhs(Span<byte> bhs);

    public byte[] Pdu(WriteBhs write, byte[]? data = null, byte[]? ahs = null)
    {
        data ??= [];
        ahs ??= [];
        var bhs = new byte[48];
        write(bhs);
        IscsiHeader.SetDataBytes(bhs, data.Length);
        bhs[4] = (byte)(ahs.Length / 4);
        byte[] head = [.. bhs, .. ahs];
        byte[] padded = [.. data, .. new byte[IscsiWire.PadOf(data.Length)]];
        return [.. head, .. _hasHeaderDigest ? Digest(head) : [], .. padded, .. _hasDataDigest && data.Length > 0 ? Digest(padded) : []];
    }

    public void Send(WriteBhs write, byte[]? data = null) => SendRaw(Pdu(write, data));

    public byte[] ReceiveRaw(int count)
    {
        var target = new byte[count];
        int have = 0;
        while (have < count)
        {
            int got = world.Loop.Run(connection.ReceiveAsync(target.AsMemory(have)));
            if (got <= 0) break;
            have += got;
        }

        return target[..have];
    }

    /// <summary>The next PDU; null at the end of the stream. Pings are answered.</summary>
    public Received? Receive(bool answersPings = true)
    {
        while (true)
        {
            byte[] bhs = ReceiveRaw(48);
            if (bhs.Length < 48) return null;
            if (_hasHeaderDigest) Check.That(ReceiveRaw(4).AsSpan().SequenceEqual(Digest(bhs)));
            IscsiHeader header = IscsiHeader.Read(bhs);
            byte[] padded = ReceiveRaw(header.PaddedDataBytes);
            if (padded.Length < header.PaddedDataBytes) return null;
            if (_hasDataDigest && header.DataBytes > 0) Check.That(ReceiveRaw(4).AsSpan().SequenceEqual(Digest(padded)));
            Check.That(padded.AsSpan(header.DataBytes).IndexOfAnyExcept((byte)0) < 0);
            var pdu = new Received(bhs, padded[..header.DataBytes]);
            Note(pdu);
            if (!answersPings || pdu.Opcode != IscsiOpcode.NopIn || header.InitiatorTaskTag != IscsiWire.NoTag) return pdu;
            uint transferTag = NopInPdu.Read(bhs).TransferTag;
            Send(b => new NopOutPdu(true, 0, IscsiWire.NoTag, transferTag, CmdSn, _expStatSn).WriteTo(b, 0));
        }
    }

    /// <summary>Takes a ping and answers it.</summary>
    public void AnswerPing()
    {
        Received ping = Receive(answersPings: false)!;
        Check.That(ping.Opcode == IscsiOpcode.NopIn);
        uint transferTag = NopInPdu.Read(ping.Bhs).TransferTag;
        Send(b => new NopOutPdu(true, 0, IscsiWire.NoTag, transferTag, CmdSn, _expStatSn).WriteTo(b, 0));
    }

    public LoginResponsePdu LoginRound(
        IscsiStage current, IscsiStage? next, byte[] text, bool isContinued = false, WriteBhs? tweak = null)
    {
        var pdu = new LoginRequestPdu(
            next is not null, isContinued, current, next ?? 0, 0, Isid, Tsih, 7, Cid, CmdSn, _expStatSn);
        Send(
            b =>
            {
                pdu.WriteTo(b, 0);
                tweak?.Invoke(b);
            },
            text);
        Received? answer = Receive();
        if (answer is null) return new LoginResponsePdu(false, false, 0, 0, 0, 0, 0, default, (IscsiLoginStatus)0xFFFF);
        Check.That(answer.Opcode == IscsiOpcode.LoginResponse);
        foreach (string pair in answer.Text.Split('\0', StringSplitOptions.RemoveEmptyEntries))
            Agreed[pair[..pair.IndexOf('=')]] = pair[(pair.IndexOf('=') + 1)..];
        return LoginResponsePdu.Read(answer.Bhs);
    }

    /// <summary>Logs in without authentication, operational stage only.</summary>
    public IscsiClient Login(params string[] keys)
    {
        LoginResponsePdu response = TryLogin(keys);
        Check.That(response.Status == IscsiLoginStatus.Success && response.IsTransit);
        return this;
    }

    public LoginResponsePdu TryLogin(params string[] keys)
    {
        string[] names = ["InitiatorName=" + IscsiWorld.InitiatorName, "TargetName=" + IscsiWorld.TargetName];
        if (keys.Contains("SessionType=Discovery")) names = names[..1];
        LoginResponsePdu response = LoginRound(IscsiStage.Operational, IscsiStage.FullFeature, IscsiWorld.Text([.. names, .. keys]));
        if (response.Status != IscsiLoginStatus.Success) return response;
        Tsih = response.Tsih;
        CmdSn = Math.Max(CmdSn, response.Numbers.ExpCmdSn);
        InitialR2T = Agreed.GetValueOrDefault("InitialR2T", "Yes") == "Yes";
        ImmediateData = Agreed.GetValueOrDefault("ImmediateData", "Yes") == "Yes";
        FirstBurst = NumberOf("FirstBurstLength", 65536);
        MaxSegment = NumberOf("MaxRecvDataSegmentLength", 8192);
        _hasHeaderDigest = Agreed.GetValueOrDefault("HeaderDigest") == "CRC32C";
        _hasDataDigest = Agreed.GetValueOrDefault("DataDigest") == "CRC32C";
        return response;
    }

    public static byte[] Cdb10(byte opcode, int block, int count) =>
        [opcode, 0, (byte)(block >> 24), (byte)(block >> 16), (byte)(block >> 8), (byte)block, 0, (byte)(count >> 8), (byte)count, 0];

    /// <summary>Sends a command with as much unsolicited data as was agreed; answers its tag.</summary>
    public uint Command(
        byte[] cdb, int expected = 0, byte[]? data = null, bool isImmediate = false, TaskAttribute attribute = TaskAttribute.Simple,
        ulong lun = 0)
    {
        uint tag = Tag++;
        int immediate = data is null || !ImmediateData ? 0 : Math.Min(Math.Min(FirstBurst, data.Length), Math.Min(MaxSegment, PieceMax));
        bool isFinal = data is null || InitialR2T || immediate == Math.Min(FirstBurst, data.Length);
        var pdu = new ScsiCommandPdu(
            isImmediate, isFinal, data is null && expected > 0, data is not null, attribute, lun, tag,
            (uint)(data?.Length ?? expected), CmdSn, _expStatSn);
        if (!isImmediate) CmdSn++;
        Send(b => pdu.WriteTo(b, cdb, 0), data?[..immediate]);
        if (!isFinal) DataOut(tag, IscsiWire.NoTag, data!, immediate, Math.Min(FirstBurst, data!.Length));
        return tag;
    }

    /// <summary>One sequence of Data-Out.</summary>
    public void DataOut(uint tag, uint transferTag, byte[] data, int from, int to)
    {
        uint dataSn = 0;
        while (from < to)
        {
            int piece = Math.Min(Math.Min(MaxSegment, PieceMax), to - from);
            var pdu = new DataOutPdu(from + piece == to, 0, tag, transferTag, _expStatSn, dataSn++, (uint)from);
            Send(b => pdu.WriteTo(b, 0), data[from..(from + piece)]);
            from += piece;
        }
    }

    /// <summary>Answers R2Ts until the command has its status.</summary>
    public ScsiAnswer Finish(uint tag, byte[]? data = null, uint r2tsSeen = 0)
    {
        using var dataIn = new MemoryStream();
        uint dataSn = 0;
        uint r2tSn = r2tsSeen;
        while (true)
        {
            Received pdu = Receive() ?? throw new InvalidOperationException("the target closed: " + (HasEnded ? End() : "no reason"));
            Check.That(IscsiHeader.Read(pdu.Bhs).InitiatorTaskTag == tag);
            switch (pdu.Opcode)
            {
                case IscsiOpcode.R2T:
                    R2TPdu r2t = R2TPdu.Read(pdu.Bhs);
                    Check.That(r2t.R2TSn == r2tSn++);
                    DataOut(tag, r2t.TransferTag, data!, (int)r2t.Offset, (int)(r2t.Offset + r2t.LengthBytes));
                    break;
                case IscsiOpcode.DataIn:
                    DataInPdu piece = DataInPdu.Read(pdu.Bhs);
                    Check.That(piece.DataSn == dataSn++ && piece.Offset == dataIn.Length);
                    dataIn.Write(pdu.Data);
                    if (piece.HasStatus) return new ScsiAnswer(piece.Status, dataIn.ToArray(), [], piece.Residual);
                    break;
                default:
                    Check.That(pdu.Opcode == IscsiOpcode.ScsiResponse);
                    ScsiResponsePdu response = ScsiResponsePdu.Read(pdu.Bhs);
                    Check.That(response.ExpDataSn == dataSn + r2tSn);
                    byte[] sense = pdu.Data.Length == 0 ? [] : pdu.Data[2..];
                    return new ScsiAnswer(response.Status, dataIn.ToArray(), sense, response.Residual);
            }
        }
    }

    public ScsiAnswer Read(int block, int count, int? expected = null) =>
        Finish(Command(Cdb10(0x28, block, count), expected ?? count * 512));

    public ScsiAnswer Write(int block, byte[] data, int? count = null) =>
        Finish(Command(Cdb10(0x2A, block, count ?? data.Length / 512), 0, data), data);

    public TaskFunctionResponse Manage(TaskFunction function, uint referenced = IscsiWire.NoTag, uint refCmdSn = 0, ulong lun = 0)
    {
        uint tag = Tag++;
        Send(b => new TaskManagementRequestPdu(true, function, lun, tag, referenced, CmdSn, _expStatSn, refCmdSn).WriteTo(b));
        Received pdu = Receive()!;
        Check.That(pdu.Opcode == IscsiOpcode.TaskManagementResponse);
        Check.That(TaskManagementResponsePdu.Read(pdu.Bhs).Tag == tag);
        return TaskManagementResponsePdu.Read(pdu.Bhs).Response;
    }

    public IscsiLogoutResponse Logout(IscsiLogoutReason reason = IscsiLogoutReason.CloseSession, ushort cid = 0)
    {
        uint tag = Tag++;
        Send(b => new LogoutRequestPdu(true, reason, tag, cid, CmdSn, _expStatSn).WriteTo(b));
        Received pdu = Receive()!;
        Check.That(pdu.Opcode == IscsiOpcode.LogoutResponse);
        return LogoutResponsePdu.Read(pdu.Bhs).Response;
    }

    /// <summary>Sends a text request and follows the answer to its end.</summary>
    public string TextExchange(byte[] text)
    {
        uint tag = Tag++;
        uint transferTag = IscsiWire.NoTag;
        var answer = new StringBuilder();
        while (true)
        {
            var pdu = new TextRequestPdu(true, true, false, tag, transferTag, CmdSn, _expStatSn);
            Send(b => pdu.WriteTo(b, 0), transferTag == IscsiWire.NoTag ? text : []);
            Received received = Receive()!;
            if (received.Opcode == IscsiOpcode.Reject) return "Reject " + RejectPdu.Read(received.Bhs).Reason;
            TextResponsePdu response = TextResponsePdu.Read(received.Bhs);
            answer.Append(received.Text);
            if (response.IsFinal) return answer.ToString();
            transferTag = response.TransferTag;
        }
    }

    public static byte[] Digest(ReadOnlySpan<byte> bytes)
    {
        var digest = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(digest, Crc32C.Compute(bytes));
        return digest;
    }

    private int NumberOf(string key, int otherwise) =>
        OperationalKeys.Number(Agreed.GetValueOrDefault(key, ""), 0, int.MaxValue, out int number) ? number : otherwise;

    /// <summary>StatSN goes up by one with every status; the window never shrinks.</summary>
    private void Note(Received pdu)
    {
        IscsiNumbers numbers = IscsiNumbers.Read(pdu.Bhs);
        bool isStatus = pdu.Opcode switch
        {
            IscsiOpcode.DataIn => (pdu.Bhs[1] & 1) != 0,
            IscsiOpcode.R2T => false,
            IscsiOpcode.NopIn => IscsiHeader.Read(pdu.Bhs).InitiatorTaskTag != IscsiWire.NoTag,
            IscsiOpcode.LoginResponse => LoginResponsePdu.Read(pdu.Bhs).Status == IscsiLoginStatus.Success,
            _ => true,
        };
        if (isStatus)
        {
            Check.That(numbers.StatSn == _expStatSn);
            _expStatSn++;
        }

        if (pdu.Opcode == IscsiOpcode.LoginResponse) return;
        Check.That(!IscsiWire.IsBefore(numbers.MaxCmdSn, MaxCmdSn) || MaxCmdSn == 0);
        (ExpCmdSn, MaxCmdSn) = (numbers.ExpCmdSn, numbers.MaxCmdSn);
    }
}
