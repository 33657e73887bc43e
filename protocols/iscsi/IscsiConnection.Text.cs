using System.Buffers;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <content>Text negotiation in full feature phase: one exchange at a time, of bounded length, in as many PDUs as it takes.</content>
public sealed partial class IscsiConnection
{
    private const int TextRoundsMax = 16;

    // Pieces of a long answer, each asked for by the initiator: a list of thousands of targets.
    private const int TextPiecesMax = 4096;

    private readonly ArrayBufferWriter<byte> _text = new();
    private byte[] _answer = [];
    private int _answerAt, _textRounds;
    private uint _textTag, _textTransferTag = IscsiWire.NoTag;

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeTextAsync(IscsiHeader header)
    {
        TextRequestPdu pdu = TextRequestPdu.Read(_head);
        var data = new byte[header.DataBytes];
        if (!await ReceiveDataAsync(data, header.DataBytes)) return false;
        if (!pdu.IsImmediate && !TakeNumber(pdu.CmdSn)) return true;
        bool isFirst = pdu.TransferTag == IscsiWire.NoTag;
        if (isFirst) EndText();
        bool isOurs = isFirst || (pdu.TransferTag == _textTransferTag && pdu.Tag == _textTag);
        if (!isOurs || (pdu.IsFinal && pdu.IsContinued))
        {
            Reject(IscsiRejectReason.ProtocolError);
            return true;
        }

        bool isAnswering = _answerAt < _answer.Length;
        int roundsMax = isAnswering ? TextPiecesMax : TextRoundsMax;
        if (++_textRounds > roundsMax || _text.WrittenCount + data.Length > _options.TextBytesMax)
        {
            EndText();
            Reject(IscsiRejectReason.LongOperation);
            return true;
        }

        _textTag = pdu.Tag;
        if (!isAnswering)
        {
            _text.Write(data);
            if (!pdu.IsContinued && !Answer())
            {
                EndText();
                Reject(IscsiRejectReason.ProtocolError);
                return true;
            }
        }

        SendText(pdu.IsFinal, pdu.IsContinued);
        return true;
    }

    private void SendText(bool mayEnd, bool isListening)
    {
        int piece = isListening ? 0 : Math.Min(MaxSend, _answer.Length - _answerAt);
        bool goesOn = !isListening && _answerAt + piece < _answer.Length;
        bool isFinal = mayEnd && !goesOn && !isListening;
        _textTransferTag = isFinal ? IscsiWire.NoTag : _session.NextTransferTag();
        SmallPdu pdu = RentPdu();
        new TextResponsePdu(isFinal, goesOn, _textTag, _textTransferTag, default).WriteTo(pdu.Bytes, piece);
        pdu.Data = _answer.AsMemory(_answerAt, piece);
        Enqueue(pdu);
        _answerAt += piece;
        if (isFinal) EndText();
    }

    private void EndText()
    {
        _text.Clear();
        (_answer, _answerAt, _textRounds, _textTransferTag) = ([], 0, 0, IscsiWire.NoTag);
    }

    /// <summary>Answers a complete text; false when it is malformed.</summary>
    private bool Answer()
    {
        var pairs = new List<(string Key, string Value)>();
        var seen = new HashSet<string>(StringComparer.Ordinal);
        string? fault = IscsiText.TryRead(_text.WrittenSpan, pairs);
        _text.Clear();
        if (fault is not null || pairs.Any(p => !seen.Add(p.Key))) return false;
        var output = new ArrayBufferWriter<byte>();
        foreach ((string key, string value) in pairs) AnswerKey(key, value, output);
        (_answer, _answerAt) = (output.WrittenSpan.ToArray(), 0);
        return true;
    }

    private void AnswerKey(string key, string value, ArrayBufferWriter<byte> output)
    {
        switch (key)
        {
            case "SendTargets":
                SendTargets(value, output);
                return;
            case "MaxRecvDataSegmentLength":
                if (OperationalKeys.Number(value, 512, IscsiWire.LengthMax, out int length)) MaxSend = length;
                else IscsiText.Write(output, key, "Reject");
                return;
            case "InitiatorAlias":
                return;
        }

        if (key.StartsWith("X#", StringComparison.Ordinal)) return;

        // Known keys belong to the login.
        KeyVerdict verdict = OperationalKeys.Take(key, value, _options, new IscsiParameters(), false, true, out _);
        bool isOfLogin = verdict != KeyVerdict.Unknown || key is "InitiatorName" or "TargetName" or "SessionType" or "AuthMethod";
        IscsiText.Write(output, key, isOfLogin ? "Reject" : "NotUnderstood");
    }

    /// <summary>All in a discovery session; in a normal one the target's own addresses (RFC 7143, appendix C).</summary>
    private void SendTargets(string value, ArrayBufferWriter<byte> output)
    {
        bool isAll = value == "All";
        if (isAll && !_session.IsDiscovery)
        {
            IscsiText.Write(output, "SendTargets", "Reject");
            return;
        }

        if (!IscsiName.TryNormalize(value, out string name)) name = value;
        string? own = _session.Entry?.Name;
        foreach (IscsiListing listing in _session.Target.Targets.List(_session.InitiatorName, _session.User, Peer))
        {
            bool isWanted = own is null ? isAll || listing.Name == name
                : listing.Name == own && (value.Length == 0 || name == own);
            if (!isWanted) continue;
            IscsiText.Write(output, "TargetName", listing.Name);
            foreach (string address in listing.Addresses) IscsiText.Write(output, "TargetAddress", address);
        }
    }
}
