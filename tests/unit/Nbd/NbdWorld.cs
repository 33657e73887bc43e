using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>A server's session and a client's hand on the other end, on one simulated loop.</summary>
internal sealed class NbdWorld : INbdExports
{
    private readonly Task<string> _end;

    public NbdWorld(ulong seed = 1, NbdOptions? options = null, SimLoop? loop = null, MemoryDevice? device = null)
    {
        Loop = loop ?? new SimLoop(seed);
        Device = device ?? new MemoryDevice(64 << 20, Loop);
        (Client, SimConnection server) = SimConnection.Pair(Loop);
        Session = new NbdSession(Loop, server, this, options ?? new NbdOptions());
        _end = Session.RunAsync().AsTask();
    }

    public SimLoop Loop { get; }

    public MemoryDevice Device { get; }

    public SimConnection Client { get; }

    public NbdSession Session { get; }

    public NbdReplyMode Mode { get; set; }

    public bool RequiresTls { get; set; }

    public bool IsReadOnly { get; set; }

    public INbdContexts? Contexts { get; set; }

    public VolumeAdmission? Admission { get; set; }

    /// <summary>Who may use the export; everybody when null.</summary>
    public Func<string?, bool>? MayUse { get; set; }

    /// <summary>Why what may not be used cannot be had now, or null.</summary>
    public string? Reason { get; set; }

    public string? WhyNot(string name, string? identity) => Reason;

    public bool HasEnded => _end.IsCompleted;

    public ValueTask<NbdExport?> FindAsync(string name, string? identity) => new(
        name is "disk" or "" && MayUse?.Invoke(identity) != false ? new NbdExport
        {
            Name = "disk", Description = "a disk", Device = Device, SizeBytes = Device.SizeBytes,
            RequiresTls = RequiresTls, IsReadOnly = IsReadOnly, Contexts = Contexts, Admission = Admission,
        }
        : null);

    public IReadOnlyList<NbdListing> List(string? identity) =>
        MayUse?.Invoke(identity) == false ? [] : [new("disk", "a disk")];

    /// <summary>Why the session ended; runs the world until it has.</summary>
    public string End()
    {
        Check.That(Loop.RunUntil(() => _end.IsCompleted));
        return _end.GetAwaiter().GetResult();
    }

    public int Send(params byte[][] parts)
    {
        var batch = new SendBatch();
        foreach (byte[] part in parts) batch.Add(part);
        return Loop.Run(Client.SendAsync(batch));
    }

    /// <summary>Exactly <paramref name="count"/> bytes, or fewer at the end of the stream.</summary>
    public byte[] Receive(int count)
    {
        var target = new byte[count];
        int have = 0;
        while (have < count)
        {
            int got = Loop.Run(Client.ReceiveAsync(target.AsMemory(have)));
            if (got <= 0) break;
            have += got;
        }

        return target[..have];
    }

    public void Greet(uint flags = 3)
    {
        byte[] greeting = Receive(18);
        Check.That(Convert.ToHexString(greeting) == "4E42444D4147494349484156454F50540003");
        Send(U32(flags));
    }

    public static byte[] OptionBytes(NbdOption option, params byte[][] data)
    {
        byte[] all = Join(data);
        return Join("IHAVEOPT"u8.ToArray(), U32((uint)option), U32((uint)all.Length), all);
    }

    /// <summary>Sends an option and gives every reply up to the ACK or error.</summary>
    public List<(NbdReply Type, byte[] Data)> Option(NbdOption option, params byte[][] data)
    {
        Send(OptionBytes(option, data));
        return Replies(option);
    }

    public List<(NbdReply Type, byte[] Data)> Replies(NbdOption option)
    {
        var replies = new List<(NbdReply, byte[])>();
        while (true)
        {
            byte[] head = Receive(20);
            if (head.Length < 20) return replies;
            Check.That(BinaryPrimitives.ReadUInt64BigEndian(head) == NbdWire.OptionReplyMagic);
            Check.That(BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(8)) == (uint)option);
            var type = (NbdReply)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(12));
            replies.Add((type, Receive((int)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(16)))));
            if (type is NbdReply.Ack or >= (NbdReply)0x80000000) return replies;
        }
    }

    public NbdWorld Enter(NbdReplyMode mode = NbdReplyMode.Simple, bool context = false)
    {
        Greet();
        Mode = mode;
        if (mode == NbdReplyMode.Structured) Option(NbdOption.StructuredReply);
        if (mode == NbdReplyMode.Extended) Option(NbdOption.ExtendedHeaders);
        if (context)
            Check.That(Option(NbdOption.SetMetaContext, Text("disk"), U32(1), Text("base:allocation")).Count == 2);
        Check.That(Option(NbdOption.Go, Text("disk"), U16(0))[^1].Type == NbdReply.Ack);
        return this;
    }

    public byte[] RequestBytes(
        NbdCommand command, ulong cookie, ulong offset, ulong length, NbdCommandFlags flags = 0, byte[]? payload = null)
    {
        var head = new byte[NbdRequest.SizeIn(Mode)];
        if (Mode == NbdReplyMode.Extended && payload is not null) flags |= NbdCommandFlags.PayloadLength;
        new NbdRequest(command, flags, cookie, offset, length).WriteTo(head, Mode);
        return Join(head, payload ?? []);
    }

    /// <summary>Sends a request and gives the error of its reply, the chunks' data in <paramref name="chunks"/>.</summary>
    public NbdError Ask(
        NbdCommand command, ulong offset, ulong length, NbdCommandFlags flags = 0, byte[]? payload = null,
        List<(NbdChunk Type, byte[] Data)>? chunks = null, ulong cookie = 77)
    {
        Send(RequestBytes(command, cookie, offset, length, flags, payload));
        return Answer(cookie, command == NbdCommand.Read ? (int)length : 0, chunks, offset);
    }

    public NbdError Answer(
        ulong cookie, int simpleDataBytes, List<(NbdChunk Type, byte[] Data)>? chunks = null, ulong? offset = null)
    {
        NbdError error = NbdError.None;
        while (true)
        {
            byte[] magic = Receive(4);
            Check.That(magic.Length == 4);
            uint value = BinaryPrimitives.ReadUInt32BigEndian(magic);
            if (value == NbdWire.SimpleReplyMagic)
            {
                Check.That(Mode != NbdReplyMode.Extended);
                byte[] rest = Receive(12);
                Check.That(BinaryPrimitives.ReadUInt64BigEndian(rest.AsSpan(4)) == cookie);
                error = (NbdError)BinaryPrimitives.ReadUInt32BigEndian(rest);
                if (error == NbdError.None && simpleDataBytes > 0)
                {
                    Check.That(Mode == NbdReplyMode.Simple);
                    byte[] data = Receive(simpleDataBytes);
                    chunks?.Add((NbdChunk.OffsetData, data));
                }

                return error;
            }

            bool extended = Mode == NbdReplyMode.Extended;
            Check.That(value == (extended ? NbdWire.ExtendedReplyMagic : NbdWire.StructuredReplyMagic));
            byte[] head = Receive(extended ? 28 : 16);
            Check.That(BinaryPrimitives.ReadUInt64BigEndian(head.AsSpan(4)) == cookie);
            if (extended && offset is not null)
                Check.That(BinaryPrimitives.ReadUInt64BigEndian(head.AsSpan(12)) == offset);
            bool last = (head[1] & 1) != 0;
            var type = (NbdChunk)BinaryPrimitives.ReadUInt16BigEndian(head.AsSpan(2));
            int length = extended
                ? (int)BinaryPrimitives.ReadUInt64BigEndian(head.AsSpan(20))
                : (int)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(12));
            byte[] payload = Receive(length);
            chunks?.Add((type, payload));
            if (type == NbdChunk.Error)
            {
                error = (NbdError)BinaryPrimitives.ReadUInt32BigEndian(payload);
                Check.That(payload.Length == 6 + BinaryPrimitives.ReadUInt16BigEndian(payload.AsSpan(4)));
            }

            if (last) return error;
        }
    }

    /// <summary>Reads a range whatever the mode and puts data and holes together.</summary>
    public byte[] Read(ulong offset, int length, NbdCommandFlags flags = 0)
    {
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        Check.That(Ask(NbdCommand.Read, offset, (ulong)length, flags, null, chunks) == NbdError.None);
        if (Mode == NbdReplyMode.Simple) return chunks.Count == 0 ? [] : chunks[0].Data;
        var all = new byte[length];
        int sum = 0;
        foreach ((NbdChunk type, byte[] data) in chunks)
        {
            if (type == NbdChunk.None) continue;
            int at = (int)(BinaryPrimitives.ReadUInt64BigEndian(data) - offset);
            if (type == NbdChunk.OffsetHole)
            {
                sum += (int)BinaryPrimitives.ReadUInt32BigEndian(data.AsSpan(8));
                continue;
            }

            data.AsSpan(8).CopyTo(all.AsSpan(at));
            sum += data.Length - 8;
        }

        Check.That(sum == length);
        return all;
    }

    public NbdError Write(ulong offset, byte[] data, NbdCommandFlags flags = 0) =>
        Ask(NbdCommand.Write, offset, (ulong)data.Length, flags, data);

    public static byte[] Pattern(int length, int seed)
    {
        var bytes = new byte[length];
        new SeededRandom((ulong)seed).Fill(bytes);
        return bytes;
    }

    public static byte[] U16(int value) => [(byte)(value >> 8), (byte)value];

    public static byte[] U32(uint value)
    {
        var bytes = new byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, value);
        return bytes;
    }

    public static byte[] U64(ulong value)
    {
        var bytes = new byte[8];
        BinaryPrimitives.WriteUInt64BigEndian(bytes, value);
        return bytes;
    }

    /// <summary>A string with its 32-bit length in front.</summary>
    public static byte[] Text(string text) => Join(U32((uint)Encoding.UTF8.GetByteCount(text)), Encoding.UTF8.GetBytes(text));

    public static byte[] Join(params byte[][] parts) => parts.SelectMany(p => p).ToArray();
}
